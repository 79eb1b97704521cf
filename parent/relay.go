package parent

import (
	"bufio"
	"errors"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/loadreport"
	"github.com/mrgc/mrgc/internal/size"
)

// bound are the request headers that go on, all of them bound by the envelope
// but for the frames that the client reads, and the regions, which are another
// parent's to obey. The tenant's edge token is not among them.
var bound = []string{
	"Content-Type", api.HeaderModel, api.HeaderTenant, api.HeaderAffinity, api.HeaderSize,
	api.HeaderRecipients, api.HeaderRequestID, api.HeaderFrames, api.HeaderAllowedRegions,
}

// fromEnclave are the response headers that are passed back.
var fromEnclave = []string{"Content-Type", "Retry-After", api.HeaderKeyStatus}

// relayBufferBytes holds the largest sealed chunk.
const relayBufferBytes = 17 << 10

var relayBuffers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, relayBufferBytes) }}

// Handler serves the instance's port. Its requests have passed mutual TLS.
func (p *Parent) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+api.PathSealed, p.serveSealed)
	mux.HandleFunc("GET "+pathRecipients, p.serveRecipients)
	mux.HandleFunc("GET "+api.PathKeys, p.serveKeys)
	mux.HandleFunc("GET /healthz", p.serveHealth)
	mux.HandleFunc("GET "+api.PathDoor, p.serveHealth)
	mux.HandleFunc("POST "+api.PathWash, p.serveWash)
	mux.Handle("POST "+pathReports, p.reports.handler())
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		api.Errorf(http.StatusNotFound, "not_found", "no such path on an instance").Write(w)
	})
	return mux
}

// serveSealed relays one request. Response headers wait for the first byte of
// the sealed answer: until then Envoy may still move the request elsewhere.
func (p *Parent) serveSealed(w http.ResponseWriter, r *http.Request) {
	peer, _ := identity.Peer(r.TLS)
	if peer.Role != identity.RoleEnvoy && peer.Role != identity.RoleParent {
		api.Errorf(http.StatusForbidden, "not_allowed", "only Envoy and other parents send requests here").Write(w)
		return
	}
	if !slices.Contains(p.regionsOf(r), string(p.config.Instance.Region)) {
		// Envoy sends nothing here that may not be here; it may have been told wrong.
		api.Errorf(http.StatusForbidden, api.CodeRegionNotAllowed, "this tenant's data may not be in region %s", p.config.Instance.Region).Write(w)
		return
	}
	next := p.next(r, peer.Role)
	request, ok := p.load.begin(workOf(r.Header), next.to == toEnclave, time.Now())
	if !ok {
		overloaded := api.Errorf(http.StatusServiceUnavailable, "instance_busy", "the instance has as many requests as it takes; try again")
		overloaded.RetryAfter = time.Second
		overloaded.Write(w)
		return
	}
	defer func() { request.end(time.Now()) }()
	defer p.forwarded.begin(next.peer)()
	opened := true // whether an enclave may have seen plaintext
	if next.to == toEnclave {
		leave, refused := p.washer.admit(r.Context())
		if refused != nil {
			if refused.Code == codeStale || refused.Code == codeQuarantined { // what is sealed to it alone is sealed anew
				w.Header().Set(api.HeaderKeyStatus, api.KeyStatusStale)
			}
			refused.Write(w)
			return
		}
		defer func() { leave(r.Header.Get(api.HeaderTenant), opened) }()
		to, done := p.enclaves.enter(recipientsOf(r))
		defer done()
		next.client = to.client
	}
	arriving := p.arriving(http.NewResponseController(w), http.MaxBytesReader(w, r.Body, p.settings.Load().RequestBodyBytes))
	resp, err := p.send(r, next, arriving)
	late := arriving.end()
	if err != nil && late {
		api.Errorf(http.StatusRequestTimeout, "request_timeout", "the request did not arrive in time; send it again").Write(w)
		return
	}
	if err != nil {
		p.answerFailure(w, r, err)
		return
	}
	defer resp.Body.Close()
	body := relayBuffers.Get().(*bufio.Reader)
	body.Reset(resp.Body)
	defer func() {
		body.Reset(nil)
		relayBuffers.Put(body)
	}()
	if _, err := body.Peek(1); err != nil && !errors.Is(err, io.EOF) {
		p.answerFailure(w, r, err)
		return
	}
	opened = resp.StatusCode == http.StatusOK
	if opened { // a refusal is quick, and says nothing of the engine
		request.answers(time.Now())
	}
	if resp.Header.Get(api.HeaderKeyStatus) == api.KeyStatusStale {
		p.probeNow() // the enclave may have other keys than it had
	}
	copyHeaders(w.Header(), resp.Header, fromEnclave)
	w.Header()[loadreport.Header] = p.reports.header()
	w.WriteHeader(resp.StatusCode)
	if err := stream(w, body, p.config.AnswerWait); err != nil {
		// A cut answer must look cut: closing the stream in good order would
		// hide it from everyone but the tenant's client.
		panic(http.ErrAbortHandler)
	}
	// Nothing else that an enclave may say goes on.
	if used, err := size.Parse(resp.Trailer.Get(api.HeaderUsage)); err == nil {
		w.Header().Set(http.TrailerPrefix+api.HeaderUsage, used.String())
		if next.to == toEnclave { // what a peer's enclave has used the peer accounts for
			p.metrics.use(used)
			request.has(used)
		}
	}
	switch outcome := resp.Trailer.Get(api.HeaderOutcome); outcome {
	case api.OutcomeFailed, api.OutcomeRefused, api.OutcomeRejected:
		w.Header().Set(http.TrailerPrefix+api.HeaderOutcome, outcome)
		if outcome == api.OutcomeFailed && next.to == toEnclave {
			p.load.fail()
		}
	}
}

// send sends the request on. The body streams through.
func (p *Parent) send(r *http.Request, to hop, body io.ReadCloser) (*http.Response, error) {
	if limit := p.settings.Load().RequestBodyBytes; r.ContentLength > limit {
		return nil, &http.MaxBytesError{Limit: limit}
	}
	url := to.url
	if r.URL.RawQuery != "" {
		url += "?" + r.URL.RawQuery // the enclave refuses it; hiding it would be a second opinion
	}
	out, err := http.NewRequestWithContext(r.Context(), http.MethodPost, url, body)
	if err != nil {
		return nil, err
	}
	out.ContentLength = r.ContentLength
	copyHeaders(out.Header, r.Header, bound)
	p.metrics.requests.WithLabelValues(to.to).Inc()
	return to.client.Do(out)
}

func copyHeaders(to, from http.Header, names []string) {
	for _, name := range names {
		if values := from[http.CanonicalHeaderKey(name)]; len(values) > 0 {
			to[http.CanonicalHeaderKey(name)] = values
		}
	}
}

// answerFailure answers a request that got nothing from the enclave.
func (p *Parent) answerFailure(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		panic(http.ErrAbortHandler) // the client has gone
	}
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		api.Errorf(http.StatusRequestEntityTooLarge, "request_too_large",
			"the sealed request is larger than %d bytes", tooLarge.Limit).Write(w)
		return
	}
	p.load.fail()
	p.log.Warn("no enclave answered", "error", err)
	unreachable := api.Errorf(http.StatusServiceUnavailable, "enclave_unreachable", "the instance's enclave does not answer; try again")
	unreachable.RetryAfter = time.Second
	unreachable.Write(w)
}

// bodyBytesPerSecond is how fast a request's body has to come at least.
const bodyBytesPerSecond = 16 << 10

// arriving is a request's body on its way: a request that is sent to the enclave
// while its body does not come would hold a place there for as long as it lives.
type arriving struct {
	io.ReadCloser
	bytes atomic.Int64
	done  atomic.Bool
	watch *time.Timer

	mu   sync.Mutex
	over bool // guarded by mu: nobody waits for it any more
	late bool // guarded by mu: it was given up
}

// arriving watches over a body that control's request has, until end is called.
func (p *Parent) arriving(control *http.ResponseController, body io.ReadCloser) *arriving {
	a, began := &arriving{ReadCloser: body}, time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.watch = time.AfterFunc(p.config.BodyWait, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		left := p.config.BodyWait + time.Duration(a.bytes.Load())*time.Second/bodyBytesPerSecond - time.Since(began)
		switch {
		case a.over || a.done.Load():
		case left > 0:
			a.watch.Reset(left)
		default:
			a.late = true
			_ = control.SetReadDeadline(began) // HTTP/2 and HTTP/1.1 have one
		}
	})
	return a
}

// end says whether the body was given up.
func (a *arriving) end() (late bool) {
	a.watch.Stop()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.over = true
	return a.late
}

func (a *arriving) Read(b []byte) (int, error) {
	n, err := a.ReadCloser.Read(b)
	a.bytes.Add(int64(n))
	if err != nil {
		a.done.Store(true)
	}
	return n, err
}

// stream copies what the enclave writes as soon as it has written it. What is not
// taken within wait ends it.
func stream(w http.ResponseWriter, r *bufio.Reader, wait time.Duration) error {
	flusher := http.NewResponseController(w)
	for {
		if _, err := r.Peek(1); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		chunk, _ := r.Peek(r.Buffered())
		_ = flusher.SetWriteDeadline(time.Now().Add(wait)) // HTTP/2 and HTTP/1.1 have one
		if _, err := w.Write(chunk); err != nil {
			return err
		}
		if err := flusher.Flush(); err != nil {
			return err
		}
		_ = flusher.SetWriteDeadline(time.Time{}) // the next chunk may take its time
		if _, err := r.Discard(len(chunk)); err != nil {
			return err
		}
	}
}
