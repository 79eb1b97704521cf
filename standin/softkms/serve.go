package softkms

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
)

const (
	maxBodyBytes = 64 << 10
	targetPrefix = "TrentService."
	contentType  = "application/x-amz-json-1.1"
)

// apiError is an error as the JSON protocol carries it.
type apiError struct {
	code, message string
}

func errorf(code, format string, args ...any) *apiError {
	return &apiError{code: code, message: fmt.Sprintf(format, args...)}
}

// operation is one of KMS's: it reads its parameters and answers.
type operation func(*exchange, []byte) (any, *apiError)

var operationsByName = map[string]operation{
	"GenerateDataKey": (*exchange).generateDataKey,
	"Decrypt":         (*exchange).decrypt,
	"Encrypt":         (*exchange).encrypt,
	"ReEncrypt":       (*exchange).reEncrypt,

	"CreateGrant":                         (*exchange).createGrant,
	"GenerateDataKeyWithoutPlaintext":     (*exchange).generateDataKeyWithoutPlaintext,
	"GenerateDataKeyPair":                 (*exchange).generateDataKeyPair,
	"GenerateDataKeyPairWithoutPlaintext": (*exchange).generateDataKeyPairWithoutPlaintext,
	"GetKeyPolicy":                        (*exchange).getKeyPolicy,
}

// ServeHTTP answers one call.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBodyBytes))
	var answer any
	var refused *apiError
	if err != nil {
		refused = errorf("ValidationException", "the request is larger than %d bytes", maxBodyBytes)
	} else {
		answer, refused = s.serve(r, body)
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("X-Amzn-Requestid", rand.Text())
	if refused != nil {
		w.WriteHeader(http.StatusBadRequest)
		answer = map[string]string{"__type": refused.code, "message": refused.message}
	}
	_ = json.NewEncoder(w).Encode(answer) // whoever asked has gone
}

func (s *Service) serve(r *http.Request, body []byte) (answer any, refused *apiError) {
	name, ok := strings.CutPrefix(r.Header.Get("X-Amz-Target"), targetPrefix)
	run := operationsByName[name]
	x := &exchange{service: s, event: Event{Action: "kms:" + name}}
	defer func() {
		if refused != nil {
			x.event.Error = refused.code
		}
		s.config.Audit(x.event)
	}()
	if r.Method != http.MethodPost || r.URL.Path != "/" || r.Header.Get("Content-Type") != contentType || !ok || run == nil {
		return nil, errorf("UnknownOperationException", "not POST / of %s with a target that is known here", contentType)
	}
	p, region, refused := s.authenticate(r, body)
	if refused != nil {
		return nil, refused
	}
	x.event.Principal, x.event.Region = p.ARN, region
	return run(x, body)
}

// exchange is one call by an authenticated principal.
type exchange struct {
	service *Service
	event   Event
}

// admit finds the key and asks its policy.
func (x *exchange) admit(action, name string, context map[string]string, to *recipient) (*key, *attested, *apiError) {
	k, refused := x.service.find(name, x.event.Region)
	if refused != nil {
		return nil, nil, refused
	}
	x.event.Key, x.event.Context = ARN(x.event.Region, k.id), context
	values := map[string][]string{}
	for name, value := range context {
		values["kms:encryptioncontext:"+strings.ToLower(name)] = []string{value}
		values["kms:encryptioncontextkeys"] = append(values["kms:encryptioncontextkeys"], name)
	}
	var verified *attested
	if to != nil {
		if verified, refused = x.service.verify(to); refused != nil {
			return nil, nil, refused
		}
		x.event.PCR0 = verified.pcrs[0].String()
		maps.Copy(values, verified.values())
	}
	if !k.policy.allows(call{principal: x.event.Principal, action: action, values: values}) {
		return nil, nil, errorf("AccessDeniedException",
			"User: %s is not authorized to perform: %s on resource: %s because no resource-based policy allows the action",
			x.event.Principal, action, x.event.Key)
	}
	return k, verified, nil
}

// read reads a call's parameters. A field that is not known here might ask for
// something that would not be done.
func read(body []byte, into any) *apiError {
	if err := strict(body, into); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return errorf("SerializationException", "not JSON")
		}
		return errorf("ValidationException", "%v", err)
	}
	return nil
}
