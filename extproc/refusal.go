package extproc

import (
	"net/http"
	"time"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
)

// Codes of the picker's refusals. They are outcomes in its metrics too.
const (
	codeNotSealed       = "request_not_sealed"
	codeInvalidHeader   = "invalid_header"
	codeInvalidAPIKey   = "invalid_api_key"
	codeModelNotFound   = "model_not_found"
	codeStaleRecipients = "stale_recipients"
	codeNotReady        = "no_instance_ready"
	codeElsewhere       = api.CodeRegionNotAllowed
	codeNoTenants       = "tenants_expired"
	codeLimited         = "rate_limit_exceeded"
	codeTooLarge        = "request_too_large"
)

// retryAfter is what a client is asked to wait when nothing is ready: about the
// time in which a heartbeat shows that something is again.
const retryAfter = time.Second

func errNotSealed() *api.Error {
	return api.Errorf(http.StatusBadRequest, codeNotSealed,
		"this endpoint takes sealed requests only: send yours through `mrgc connect`, or use the Go client")
}

func errInvalidHeader(name string) *api.Error {
	err := api.Errorf(http.StatusBadRequest, codeInvalidHeader,
		"header %s is missing, malformed or repeated: `mrgc connect` and the Go client set it as it must be", name)
	err.Param = name
	return err
}

func errInvalidAPIKey() *api.Error {
	return api.Errorf(http.StatusUnauthorized, codeInvalidAPIKey,
		"this cluster knows no such API key for this tenant: check the key, and that it is for this cluster")
}

func errModelNotFound(model string) *api.Error {
	err := api.Errorf(http.StatusNotFound, codeModelNotFound,
		"model %q is not served here, or not to this tenant: GET %s lists those that are", model, api.PathModels)
	err.Param = "model"
	return err
}

func errElsewhere(region fleet.Region) *api.Error {
	return api.Errorf(http.StatusForbidden, codeElsewhere,
		"this tenant's data may not be in region %s: use the endpoint of a region that is allowed to it", region)
}

func errNoTenants() *api.Error {
	err := api.Errorf(http.StatusServiceUnavailable, codeNoTenants,
		"this cluster's list of tenants has expired: its operator has to sign a new one")
	err.RetryAfter = time.Minute
	return err
}

func errStaleRecipients() *api.Error {
	return api.Errorf(http.StatusConflict, codeStaleRecipients,
		"no instance that serves this model holds a key that the request is sealed to: get recipients from %s and seal it again",
		api.PathKeys)
}

func errNotReady() *api.Error {
	err := api.Errorf(http.StatusServiceUnavailable, codeNotReady,
		"no instance that could serve this request is ready: try again")
	err.RetryAfter = retryAfter
	return err
}
