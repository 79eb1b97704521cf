package moto

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
)

// Front stands before moto, and does what EC2 does and moto does not: it honours the
// client tokens of launches, and, when it is told to, has no capacity, throttles, and
// loses answers. It is an [http.Handler], safe for concurrent use.
type Front struct {
	proxy *httputil.ReverseProxy

	mu       sync.Mutex
	refusals map[string]*Refusal // guarded by mu; by action, or by action, space and zone
	lose     map[string]int      // guarded by mu; answers by action
	asked    []url.Values        // guarded by mu
	launches map[string]*launch  // guarded by mu; by client token
	pages    string              // guarded by mu
	hear     Hear                // guarded by mu; nil: nobody does
}

// Hear is told of a call, its parameters, when it has come, and when it is done and not
// answered yet, and says whether it is lost there.
type Hear func(call url.Values, done bool) (lost bool)

// Refusal is an error that an action gets.
type Refusal struct {
	Code  string
	Times int // how often; 0: always
}

// launch is one by a token: its answer, once it has been done.
type launch struct {
	once   sync.Once
	status int
	body   []byte
}

// NewFront makes a front of a server.
func NewFront(s *Server) (*Front, error) {
	to, err := url.Parse(s.Endpoint)
	if err != nil {
		return nil, fmt.Errorf("moto: %w", err)
	}
	return &Front{
		proxy: httputil.NewSingleHostReverseProxy(to), refusals: map[string]*Refusal{}, lose: map[string]int{}, launches: map[string]*launch{},
	}, nil
}

// Refuse has an action refused from now on: "RunInstances", or "RunInstances us-east-1a".
func (f *Front) Refuse(action string, with Refusal) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refusals[action] = &with
}

// Lose has so many of an action's next answers lost, after it was done.
func (f *Front) Lose(action string, answers int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lose[action] = answers
}

// Tell has every call told of from now on.
func (f *Front) Tell(hear Hear) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hear = hear
}

// PageBy has lists come in pages of so many.
func (f *Front) PageBy(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pages = fmt.Sprint(n)
}

// Asked gives what was asked for by an action, in order.
func (f *Front) Asked(action string) (all []url.Values) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, form := range f.asked {
		if form.Get("Action") == action {
			all = append(all, form)
		}
	}
	return all
}

// ServeHTTP answers one call of EC2's Query protocol.
func (f *Front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the caller is gone
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	code, lost, hear := f.note(form)
	if code != "" {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = fmt.Fprintf(w, `<Response><Errors><Error><Code>%s</Code><Message>it is so</Message></Error></Errors><RequestID>1</RequestID></Response>`, code)
		return
	}
	if hear(form, false) {
		panic(http.ErrAbortHandler) // which closes the connection
	}
	status, answer := f.do(r, form)
	if hear(form, true) || lost {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Content-Type", "text/xml")
	w.WriteHeader(status)
	_, _ = w.Write(answer) //nolint:gosec // to an SDK, in tests
}

// note remembers a call, and says whether it is refused, or its answer lost, and who is
// to hear of it.
func (f *Front) note(form url.Values) (code string, lost bool, hear Hear) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, form)
	action := form.Get("Action")
	for _, name := range []string{action, action + " " + form.Get("Placement.AvailabilityZone")} {
		refusal := f.refusals[name]
		if refusal == nil {
			continue
		}
		if refusal.Times--; refusal.Times == 0 {
			delete(f.refusals, name)
		}
		return refusal.Code, false, nil
	}
	lost = f.lose[action] > 0
	f.lose[action]--
	if action == "DescribeInstances" && f.pages != "" {
		form.Set("MaxResults", f.pages)
	}
	if hear = f.hear; hear == nil {
		hear = func(url.Values, bool) bool { return false }
	}
	return "", lost, hear
}

// do has moto do it, a launch once for a token.
func (f *Front) do(r *http.Request, form url.Values) (status int, answer []byte) {
	token := form.Get("ClientToken")
	if form.Get("Action") != "RunInstances" || token == "" {
		return f.forward(r, form)
	}
	f.mu.Lock()
	l := f.launches[token]
	if l == nil {
		l = &launch{}
		f.launches[token] = l
	}
	f.mu.Unlock()
	l.once.Do(func() { l.status, l.body = f.forward(r, form) })
	return l.status, l.body
}

func (f *Front) forward(r *http.Request, form url.Values) (status int, answer []byte) {
	content := []byte(form.Encode())
	// What has come is done, also when who has asked is gone.
	out := r.Clone(context.WithoutCancel(r.Context()))
	out.Body, out.ContentLength = io.NopCloser(bytes.NewReader(content)), int64(len(content))
	recorded := httptest.NewRecorder()
	f.proxy.ServeHTTP(recorded, out)
	return recorded.Code, recorded.Body.Bytes()
}
