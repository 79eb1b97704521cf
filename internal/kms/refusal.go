package kms

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
)

// codes are KMS's errors that say something of the request (AWS KMS API
// reference, Decrypt). All others are of the way there: signature, clock,
// throttling, KMS itself.
var codes = map[string]error{
	"AccessDeniedException":      ErrDenied,
	"DisabledException":          ErrDenied,
	"KMSInvalidStateException":   ErrDenied,
	"NotFoundException":          ErrDenied,
	"InvalidKeyUsageException":   ErrDenied,
	"InvalidCiphertextException": ErrCiphertext,
	"IncorrectKeyException":      ErrCiphertext,
}

var plainCode = regexp.MustCompile(`^[A-Za-z]{1,64}$`)

// refusal classes an error answer of the JSON protocol: its "__type" is the
// code, perhaps after a namespace and "#". The message stays out: it is whoever's
// answered.
func refusal(status int, body []byte) error {
	var answer struct {
		Type string `json:"__type"`
	}
	_ = json.Unmarshal(body, &answer) // what is not JSON has no code
	code := answer.Type[strings.LastIndex(answer.Type, "#")+1:]
	if class := codes[code]; class != nil {
		return fmt.Errorf("%w: %s", class, code)
	}
	if !plainCode.MatchString(code) {
		code = "no code"
	}
	return fmt.Errorf("%w: status %d, %s", ErrUnavailable, status, code)
}
