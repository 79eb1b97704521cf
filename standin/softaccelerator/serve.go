package softaccelerator

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/mrgc/mrgc/standin/sigv4"
)

const (
	maxBodyBytes = 64 << 10
	targetPrefix = "GlobalAccelerator_V20180706."
	contentType  = "application/x-amz-json-1.1"
)

// apiError is an error as the JSON protocol carries it.
type apiError struct {
	Code    string `json:"__type"`
	Message string `json:"Message"`
}

func errorf(code, format string, args ...any) *apiError {
	return &apiError{Code: code, Message: fmt.Sprintf(format, args...)}
}

// invalid is what Global Accelerator says to arguments that cannot be.
func invalid(format string, args ...any) *apiError {
	return errorf("InvalidArgumentException", format, args...)
}

var operations = map[string]func(*Service, []byte) (any, *apiError){
	"ListAccelerators":      with((*Service).listAccelerators),
	"DescribeAccelerator":   with((*Service).describeAccelerator),
	"ListListeners":         with((*Service).listListeners),
	"DescribeListener":      with((*Service).describeListener),
	"ListEndpointGroups":    with((*Service).listEndpointGroups),
	"DescribeEndpointGroup": with((*Service).describeEndpointGroup),
	"UpdateEndpointGroup":   with((*Service).updateEndpointGroup),
}

// with reads the parameters of an operation. One that is not known here might ask for
// something that would not be done.
func with[P any](run func(*Service, P) (any, *apiError)) func(*Service, []byte) (any, *apiError) {
	return func(s *Service, body []byte) (any, *apiError) {
		var parameters P
		decoder := json.NewDecoder(bytes.NewReader(body))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&parameters); err != nil {
			return nil, errorf("SerializationException", "%v", err)
		}
		return run(s, parameters)
	}
}

// ServeHTTP answers one call of the API.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer, refused := s.serve(w, r)
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("X-Amzn-Requestid", rand.Text())
	if refused != nil {
		w.WriteHeader(http.StatusBadRequest)
		answer = refused
	}
	_ = json.NewEncoder(w).Encode(answer) // whoever asked has gone
}

func (s *Service) serve(w http.ResponseWriter, r *http.Request) (any, *apiError) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBodyBytes))
	if err != nil {
		return nil, errorf("SerializationException", "the request is larger than %d bytes", maxBodyBytes)
	}
	name, ok := strings.CutPrefix(r.Header.Get("X-Amz-Target"), targetPrefix)
	run := operations[name]
	if r.Method != http.MethodPost || r.URL.Path != "/" || r.Header.Get("Content-Type") != contentType || !ok || run == nil {
		return nil, errorf("UnknownOperationException", "not POST / of %s with a target that is known here", contentType)
	}
	verifier := sigv4.Verifier{
		Service: "globalaccelerator", Regions: []string{HomeRegion}, Now: s.config.Now,
		Find: func(id string) (sigv4.Credentials, bool) {
			return s.config.Credentials, id == s.config.Credentials.AccessKeyID
		},
	}
	if _, refused := verifier.Verify(r, body); refused != nil {
		return nil, errorf(refused.Code, "%s", refused.Message)
	}
	return run(s, body)
}
