package awscall

import "net/http"

// Sign signs a request of a configuration whose Now is set.
func Sign(c Config, req *http.Request, operation string, body []byte, credentials Credentials) {
	c.sign(req, operation, body, credentials)
}
