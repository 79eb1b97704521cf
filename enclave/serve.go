package enclave

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/seal"
	"github.com/mrgc/mrgc/internal/size"
	"github.com/mrgc/mrgc/internal/tenant"
)

// serveSealed opens one request and answers it.
func (e *Enclave) serveSealed(w http.ResponseWriter, r *http.Request) {
	select {
	case e.slots <- struct{}{}:
		defer func() {
			<-e.slots
			e.cleaner.ended()
		}()
	default:
		errBusy("the instance has as many requests as it takes; try again").Write(w)
		return
	}
	held := e.bytes.hold(r.Body)
	defer held.release()
	r.Body = held
	opened, key, others, refused := e.open(w, r)
	if refused != nil {
		if refused.Code == codeStale {
			w.Header().Set(api.HeaderKeyStatus, api.KeyStatusStale)
		}
		refused.Write(w)
		return
	}
	defer opened.Wipe()
	w.Header().Set("Content-Type", api.ContentTypeSealedResponse)
	out := &flushWriter{w: w, control: http.NewResponseController(w)}
	sealing, err := opened.Respond(e.config.Rand, out)
	if err != nil {
		api.Errorf(http.StatusInternalServerError, "internal", "the enclave cannot answer").Write(w)
		return
	}
	answer := newReply(sealing, out, opened, key, e.host.statement(), e.config.Now)
	defer answer.Wipe()
	answer.sent = held.release
	answer.pieces = pieceFrames(r.Header)
	done, err := e.answer(r.Context(), opened, answer, others && !key.shared())
	if errors.Is(err, errFailed) {
		// In clear, too. It may have run, so that it does not again on this key.
		e.failed.add(opened.RequestID)
		errEngineFailed().Write(w)
		return
	}
	if errors.Is(err, errNotRun) && key.shared() {
		// Nothing has happened, but the fleet's record stays: no other instance would
		// run the same envelope, so the client is told to make another one.
		err = refuse(answer, errEngineUnreachable())
		done.outcome = api.OutcomeFailed
	}
	if errors.Is(err, errNotRun) {
		// Nothing has happened: in clear, so that Envoy asks another recipient.
		e.replays.Forget(opened.KeyID, opened.RequestID, opened.Expiry)
		errEngineUnreachable().Write(w)
		return
	}
	if err != nil {
		panic(http.ErrAbortHandler) // whoever reads must see a cut, not an end
	}
	if done.used != (size.Buckets{}) {
		w.Header().Set(http.TrailerPrefix+api.HeaderUsage, done.used.String())
	}
	if done.outcome != "" {
		w.Header().Set(http.TrailerPrefix+api.HeaderOutcome, done.outcome)
	}
}

// pieceFrames is how an answer in one piece is cut, by the frames that its client reads.
func pieceFrames(asked http.Header) func(full, n int) []int {
	if slices.Equal(asked.Values(api.HeaderFrames), []string{api.FramesRead}) {
		return seal.PieceFrames
	}
	return seal.Frames
}

// result is what the parent learns of an answer beside its chunks.
type result struct {
	used    size.Buckets // none when the engine was not asked, or did not serve it
	outcome string       // of [api.HeaderOutcome]; empty: the engine has served it
}

// codeStale says that the client sealed to keys that are not held here. Its
// status is 503, so that Envoy tries another recipient's instance first; the
// client sees it when none is left.
const codeStale = "stale_recipients"

func errBusy(why string) *api.Error {
	busy := api.Errorf(http.StatusServiceUnavailable, "instance_busy", "%s", why)
	busy.RetryAfter = time.Second
	return busy
}

func errEngineUnreachable() *api.Error {
	unreachable := api.Errorf(http.StatusServiceUnavailable, "engine_unreachable", "the instance's engine does not answer; try again")
	unreachable.RetryAfter = time.Second
	return unreachable
}

func errEngineFailed() *api.Error {
	failed := api.Errorf(http.StatusServiceUnavailable, "engine_failed", "the engine failed before it answered; try again")
	failed.RetryAfter = time.Second
	return failed
}

// errCannotOpen is the one answer to everything that does not open.
func errCannotOpen() *api.Error {
	return api.Errorf(http.StatusBadRequest, "cannot_open", "the sealed request cannot be opened; it was damaged, or made by a client of another version")
}

// open reads and opens a request, and records it. Until it is recorded the
// request has had no effect, and may be sent again unchanged. It says whether others
// could open the request, too.
func (e *Enclave) open(w http.ResponseWriter, r *http.Request) (opened *seal.Opened, key attestedKey, others bool, refused *api.Error) {
	fail := func(refused *api.Error) (*seal.Opened, attestedKey, bool, *api.Error) {
		return nil, attestedKey{}, false, refused
	}
	headers, refused := boundHeaders(r)
	if refused != nil {
		return fail(refused)
	}
	now := e.config.Now()
	held, ok := e.keys.find(headers.KeyIDs, now)
	if !ok {
		return fail(api.Errorf(http.StatusServiceUnavailable, codeStale, "the request is sealed to keys that are not held here; fetch %s again", api.PathKeys))
	}
	// A body that comes slower than requests live has expired. The deadline must
	// be gone before the answer starts: it would end that too.
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(e.config.RequestLifetime)) // the connection's clock is the real one
	defer func() { _ = control.SetReadDeadline(time.Time{}) }()
	body := http.MaxBytesReader(w, r.Body, e.config.RequestBodyBytes)
	prologue, err := seal.ReadPrologue(body)
	if err != nil {
		return fail(refusal(err))
	}
	opened, err = held.key.OpenWith(e.dataKeys(r.Context(), held.key.KeyID(), headers.RequestID, headers.Tenant),
		now, prologue, headers, body, seal.Limits{MaxLifetime: e.config.RequestLifetime})
	if err != nil {
		return fail(refusal(err))
	}
	// The body took its time: whether the request has expired is asked again.
	if err := e.replays.Add(opened.KeyID, opened.RequestID, opened.Expiry, e.config.Now()); err != nil {
		opened.Wipe()
		if errors.Is(err, seal.ErrReplayed) && e.failed.has(opened.RequestID) {
			return fail(errEngineFailed()) // Envoy has found nobody else
		}
		return fail(refusal(err))
	}
	if held.shared() {
		if refused := e.recordForFleet(r.Context(), opened); refused != nil {
			opened.Wipe()
			return fail(refused)
		}
	}
	return opened, held, len(headers.KeyIDs) > 1, nil
}

// recordForFleet has the fleet remember what this enclave alone has recorded so
// far. A key that others hold runs nothing that they could not know of.
func (e *Enclave) recordForFleet(ctx context.Context, opened *seal.Opened) *api.Error {
	err := e.config.Fleet.Table.Record(ctx, opened.KeyID, opened.RequestID, opened.Expiry)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, seal.ErrReplayed):
		return refusal(err)
	}
	e.config.Logger.Warn("a request to the fleet's key is refused", "error", err)
	e.replays.Forget(opened.KeyID, opened.RequestID, opened.Expiry)
	unchecked := api.Errorf(http.StatusServiceUnavailable, "replay_unchecked", "the instance's enclave cannot ask whether the request was run already; try again")
	unchecked.RetryAfter = time.Second
	return unchecked
}

// refusal is the unsealed answer for an error of package seal.
func refusal(err error) *api.Error {
	if refused := kmsRefusal(err); refused != nil {
		return refused
	}
	var tooLarge *http.MaxBytesError
	switch {
	case errors.Is(err, seal.ErrTooLarge), errors.As(err, &tooLarge):
		return api.Errorf(http.StatusRequestEntityTooLarge, "request_too_large", "the request is larger than the instance takes")
	case errors.Is(err, seal.ErrExpired):
		return api.Errorf(http.StatusBadRequest, "request_expired", "the sealed request has expired, or expires too far ahead; is the client's clock right?")
	case errors.Is(err, seal.ErrReplayed):
		return api.Errorf(http.StatusConflict, "request_replayed", "this sealed request has been run already")
	case errors.Is(err, seal.ErrReplaySetFull):
		return errBusy("the instance remembers as many requests as it can; try again")
	case errors.Is(err, errHeld):
		return errBusy("the instance holds as many bytes of requests as it can; try again")
	default:
		return errCannotOpen()
	}
}

// boundHeaders reads the headers that the envelope binds. Each may occur once.
func boundHeaders(r *http.Request) (seal.Headers, *api.Error) {
	if r.URL.RawQuery != "" || r.URL.ForceQuery {
		return seal.Headers{}, api.Errorf(http.StatusBadRequest, "invalid_request", "a sealed request has no query string")
	}
	one := func(name string) (string, bool) {
		values := r.Header.Values(name)
		if len(values) == 0 {
			return "", true
		}
		return values[0], len(values) == 1
	}
	var texts [6]string
	for i, name := range []string{
		api.HeaderModel, api.HeaderTenant, api.HeaderAffinity, api.HeaderSize, api.HeaderRequestID, api.HeaderRecipients,
	} {
		text, ok := one(name)
		if !ok {
			return seal.Headers{}, api.Errorf(http.StatusBadRequest, "invalid_header", "header %s occurs more than once", name)
		}
		texts[i] = text
	}
	h := seal.Headers{Model: texts[0], Tenant: texts[1], Affinity: texts[2], Size: texts[3]}
	var err error
	if h.RequestID, err = seal.ParseRequestID(texts[4]); err != nil {
		return seal.Headers{}, api.Errorf(http.StatusBadRequest, "invalid_header", "header %s is not a request id", api.HeaderRequestID)
	}
	if h.KeyIDs, err = seal.ParseKeyIDs(texts[5]); err != nil {
		return seal.Headers{}, api.Errorf(http.StatusBadRequest, "invalid_header", "header %s is not a list of key ids", api.HeaderRecipients)
	}
	return h, nil
}

// answer runs an opened request, and gives what has become of it. What it writes is
// sealed. An error means that the answer could not be completed and the stream must
// be cut; with errNotRun, and with errFailed, which a request gets that others may
// run, nothing has been written yet.
func (e *Enclave) answer(ctx context.Context, opened *seal.Opened, answer *reply, movable bool) (done result, err error) {
	if refused := e.admit(opened); refused != nil {
		return result{outcome: api.OutcomeRejected}, refuse(answer, refused)
	}
	request, refused := checkRequest(opened.Operation, opened.Model, opened.Payload.Body)
	salted := e.salts.of(opened.Tenant, opened.Payload.CacheSecret, request.ownSalt)
	clear(request.ownSalt)
	opened.Wipe() // what goes on is in request and salted, and the answer has keys of its own
	if refused == nil {
		refused = request.checkSize(opened.Size)
	}
	if refused != nil {
		clear(request.body)
		return result{outcome: api.OutcomeRejected}, refuse(answer, refused)
	}
	body := request.body
	request.body = nil // which lives as long as the answer
	resp, err := e.askEngine(ctx, opened.Operation, body, &salted, answer.sent)
	if !errors.Is(err, errNotRun) {
		answer.receipt.Enclave.SaltID = salted.id()
	}
	if err != nil {
		if ctx.Err() != nil {
			return done, ctx.Err()
		}
		e.config.Logger.Warn("engine cannot be reached", "error", err)
		if errors.Is(err, errNotRun) {
			return done, err // nothing is written yet
		}
		if movable {
			return done, errFailed
		}
		done.outcome = api.OutcomeFailed
		return done, refuse(answer, errEngineUnreachable())
	}
	defer resp.Body.Close()
	if movable && resp.StatusCode >= http.StatusInternalServerError {
		return done, errFailed
	}
	answer.receipt.Host.Cache = cacheSaid(resp.Header.Get(api.HeaderCache))
	done.outcome = outcomeOf(resp.StatusCode)
	if !framed(resp) {
		done.outcome = api.OutcomeFailed
		return done, refuse(answer, errStopped())
	}
	if err := answer.WriteHead(seal.Head{Status: resp.StatusCode, ContentType: resp.Header.Get("Content-Type")}); err != nil {
		return done, err
	}
	served := resp.StatusCode == http.StatusOK
	request.stream = request.stream && served // an error comes in one piece
	used, whole, err := copyAnswer(answer, resp.Body, request, e.config.AnswerWait)
	if served {
		done.used = used
	}
	if !whole {
		done.outcome = api.OutcomeFailed
	}
	return done, err
}

// outcomeOf is what an engine's status says of it.
func outcomeOf(status int) string {
	switch {
	case status >= http.StatusInternalServerError:
		return api.OutcomeFailed
	case status >= http.StatusBadRequest:
		return api.OutcomeRefused
	default:
		return ""
	}
}

// admit checks an opened request against its tenant's rules. Who it is comes
// first: strangers learn of no rule.
func (e *Enclave) admit(opened *seal.Opened) *api.Error {
	rules, err := e.config.Tenants.Set().AdmitToEnclave(opened.Tenant, opened.Payload.Credential, e.config.Now())
	switch {
	case errors.Is(err, tenant.ErrNoList):
		return api.Errorf(http.StatusServiceUnavailable, "tenants_expired", "the instance has no list of tenants that holds: the cluster's operator has to sign a new one")
	case err != nil:
		return api.Errorf(http.StatusUnauthorized, "invalid_api_key", "the API key is not one of the tenant's")
	case !rules.Models.Allow(opened.Model):
		return api.Errorf(http.StatusNotFound, "model_not_found", "the model is not served to this tenant")
	case !rules.Regions.Allow(e.config.Region):
		return api.Errorf(http.StatusForbidden, api.CodeRegionNotAllowed, "this tenant's data may not be in region %s", e.config.Region)
	}
	return nil
}

// askEngine sends a request to the engine and waits for the head of its answer.
// body is wiped when it returns: the engine has it then, or never will.
func (e *Enclave) askEngine(ctx context.Context, operation seal.Operation, body []byte, salted *salt, sent func()) (*http.Response, error) {
	secret := &secretBody{bytes: body}
	gone := func() {
		secret.wipe()
		sent()
	}
	defer gone()
	var connected atomic.Bool
	traced := e.cleaner.traced(ctx, func() { connected.Store(true) }, gone)
	reader, _ := secret.open()
	req, err := http.NewRequestWithContext(traced, http.MethodPost, "https://guard"+operation.Path(), reader)
	if err != nil {
		return nil, err
	}
	req.ContentLength, req.GetBody = int64(len(body)), secret.open
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set(api.HeaderCacheSalt, salted.text())
	resp, err := e.config.Engine.RoundTrip(req)
	switch {
	case err != nil && connected.Load():
		return nil, errBroken // the transport's own error may quote what the engine said
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errNotRun, err)
	case resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get(api.HeaderNotRun) != "":
		_ = resp.Body.Close()
		return nil, fmt.Errorf("%w: the guard cannot reach it", errNotRun)
	}
	return resp, nil
}

// errNotRun says that a request has not got as far as the engine.
var errNotRun = errors.New("the engine was not asked")

// errFailed says that the engine has failed before there was anything of an answer.
var errFailed = errors.New("the engine failed")

// errBroken stands in the log for what happened on a connection that was made.
var errBroken = errors.New("the connection to the guard broke, or did not carry HTTP")

// framed says whether an answer's end can be told from a cut. A TLS connection
// that ends at a record's border may have been ended by whoever carries its
// bytes: crypto/tls reports no error then.
func framed(resp *http.Response) bool {
	return resp.ContentLength >= 0 || len(resp.TransferEncoding) > 0 || resp.ProtoMajor >= 2
}

// refuse answers with a sealed error.
func refuse(answer *reply, e *api.Error) error {
	err := answer.WriteHead(seal.Head{Status: e.Status, ContentType: "application/json", RetryAfter: e.RetryAfter})
	if err != nil {
		return err
	}
	answer.Ends()
	if err := answer.WritePiece(0, e.Body()); err != nil {
		return err
	}
	return answer.Close(seal.End{})
}

// flushWriter sends each sealed chunk on its way at once, but for the first, the
// head, which waits for the one after it: until there is something of the answer
// itself, a request whose instance dies can still be moved to another. The last ones,
// too, go together: net/http sends them when the handler returns, with the trailer.
type flushWriter struct {
	w       http.ResponseWriter
	control *http.ResponseController
	begun   bool
	ending  bool
}

func (f *flushWriter) Write(p []byte) (int, error) {
	if !f.begun { // net/http would leave trailers out of an answer that it has had no time to send a part of
		f.w.Header().Set("Trailer", api.HeaderUsage+", "+api.HeaderOutcome)
	}
	n, err := f.w.Write(p)
	if err == nil && f.begun && !f.ending {
		err = f.control.Flush()
	}
	f.begun = true
	return n, err
}

// secretBody is a request body that can be wiped while a transport may still be
// reading it on a goroutine of its own.
type secretBody struct {
	mu    sync.Mutex
	bytes []byte // guarded by mu; nil once wiped
}

// open gives a reader of the whole body: net/http asks for a second one when a
// connection turns out to have been closed before the request was on it.
func (b *secretBody) open() (io.ReadCloser, error) { return &secretReader{body: b}, nil }

func (b *secretBody) wipe() {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.bytes)
	b.bytes = nil
}

type secretReader struct {
	body   *secretBody
	offset int
}

func (r *secretReader) Read(p []byte) (int, error) {
	r.body.mu.Lock()
	defer r.body.mu.Unlock()
	if r.offset >= len(r.body.bytes) {
		return 0, io.EOF
	}
	n := copy(p, r.body.bytes[r.offset:])
	r.offset += n
	return n, nil
}

func (r *secretReader) Close() error { return nil }
