package client

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/seal"
)

// Handler serves OpenAI's API to SDKs of any language: "/v1/chat/completions",
// "/v1/completions" and "/v1/models". It belongs on loopback, since requests
// reach it in clear.
func (c *Client) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/v1/", c.serve)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		api.Errorf(http.StatusNotFound, "not_found", "%s is not served here: the base URL ends in /v1", r.URL.Path).Write(w)
	})
	return mux
}

func (c *Client) serve(w http.ResponseWriter, r *http.Request) {
	resp, err := c.RoundTrip(r)
	if err != nil {
		if r.Context().Err() != nil {
			panic(http.ErrAbortHandler) // the SDK has gone
		}
		c.config.Logger.Warn("no endpoint answered", "error", err)
		setRequestID(w.Header(), requestIDOf(err))
		api.Errorf(http.StatusBadGateway, "cluster_unreachable", "no region of the cluster can be reached: %v", err).Write(w)
		return
	}
	defer resp.Body.Close()
	for name, values := range resp.Header {
		w.Header()[name] = values
	}
	w.WriteHeader(resp.StatusCode)
	if err := copyFlushing(w, resp.Body); err != nil {
		c.breakOff(w, resp, err)
	}
}

// copyFlushing passes each piece of the answer on as it comes.
func copyFlushing(w http.ResponseWriter, r io.Reader) error {
	control := http.NewResponseController(w)
	buffer := make([]byte, 16<<10)
	defer clear(buffer)
	for {
		n, err := r.Read(buffer)
		if n > 0 {
			if _, err := w.Write(buffer[:n]); err != nil {
				return err
			}
			if err := control.Flush(); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// breakOff ends an answer that is not complete so that no SDK can take it for
// one: a stream of events gets an error event first, which SDKs raise with its
// message; then the connection is cut.
func (c *Client) breakOff(w http.ResponseWriter, resp *http.Response, cause error) {
	c.config.Logger.Warn("answer broken off", "error", cause)
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		_, _ = fmt.Fprintf(w, "\n\ndata: %s\n\n", errorEvent(cause))
		_ = http.NewResponseController(w).Flush()
	}
	panic(http.ErrAbortHandler)
}

func errorEvent(cause error) []byte {
	var failed *seal.ResponseError
	if errors.As(cause, &failed) {
		return api.ParseError(http.StatusBadGateway, failed.Body).Body()
	}
	return api.Errorf(http.StatusBadGateway, "answer_cut", "the answer was cut off before it was complete").Body()
}
