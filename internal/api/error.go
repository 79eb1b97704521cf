package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// Types of [Error], as OpenAI's API names them.
const (
	TypeInvalidRequest = "invalid_request_error"
	TypeAuthentication = "authentication_error"
	TypePermission     = "permission_error"
	TypeRateLimit      = "rate_limit_error"
	TypeServer         = "server_error"
)

// CodeRegionNotAllowed is the [Error.Code] of who answers in a region where the
// tenant's data may not be. A client takes the request to another region.
const CodeRegionNotAllowed = "region_not_allowed"

// Error is an error in OpenAI's shape. Its message reaches the tenant, in clear
// where it could not be sealed, so it never carries content of a request, a
// key, or the reason why an envelope did not open.
type Error struct {
	Status     int           // HTTP status
	Type       string        // one of the Type constants
	Code       string        // stable, for programs: "model_not_found"
	Message    string        // for people, with what to do about it
	Param      string        // the field at fault, if one is
	RetryAfter time.Duration // sent as Retry-After in whole seconds, rounded up, when positive
}

// Errorf makes an [Error] whose type follows from its status.
func Errorf(status int, code, format string, args ...any) *Error {
	return &Error{Status: status, Type: typeOf(status), Code: code, Message: fmt.Sprintf(format, args...)}
}

func typeOf(status int) string {
	switch {
	case status == http.StatusUnauthorized:
		return TypeAuthentication
	case status == http.StatusForbidden:
		return TypePermission
	case status == http.StatusTooManyRequests:
		return TypeRateLimit
	case status >= http.StatusInternalServerError:
		return TypeServer
	default:
		return TypeInvalidRequest
	}
}

// Error gives status, code and message.
func (e *Error) Error() string {
	return fmt.Sprintf("%d %s: %s", e.Status, e.Code, e.Message)
}

type errorBody struct {
	Error errorFields `json:"error"`
}

type errorFields struct {
	Message string  `json:"message"`
	Type    string  `json:"type"`
	Param   *string `json:"param"`
	Code    *string `json:"code"`
}

// Body is the JSON body `{"error": {...}}`.
func (e *Error) Body() []byte {
	fields := errorFields{Message: e.Message, Type: e.Type}
	if e.Param != "" {
		fields.Param = &e.Param
	}
	if e.Code != "" {
		fields.Code = &e.Code
	}
	body, err := json.Marshal(errorBody{Error: fields})
	if err != nil { // strings always marshal
		panic(err)
	}
	return body
}

// Write answers a request with the error.
func (e *Error) Write(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	if e.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int((e.RetryAfter+time.Second-1)/time.Second)))
	}
	w.WriteHeader(e.Status)
	_, _ = w.Write(e.Body()) // a caller that has gone cannot be told
}

// ParseError reads an OpenAI-shaped error out of a response. A body of any
// other shape gives an error that says the status alone: what a proxy wrote
// into it is not shown to anyone.
func ParseError(status int, body []byte) *Error {
	var parsed errorBody
	if err := json.Unmarshal(body, &parsed); err != nil || parsed.Error.Message == "" {
		return Errorf(status, "unexpected_response", "the server answered with status %d", status)
	}
	e := &Error{Status: status, Type: parsed.Error.Type, Message: parsed.Error.Message}
	if parsed.Error.Code != nil {
		e.Code = *parsed.Error.Code
	}
	if parsed.Error.Param != nil {
		e.Param = *parsed.Error.Param
	}
	return e
}
