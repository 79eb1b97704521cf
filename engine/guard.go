package engine

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/engineload"
)

// Role is what a caller of the guard may do.
type Role int

// The roles. Everything that is not listed is forbidden.
const (
	RoleNone    Role = iota // nothing
	RoleEnclave             // POST /v1/chat/completions and /v1/completions, GET /v1/models and /health, POST of api.PathHostAttestation
	RoleParent              // GET /health and /metrics, which carry no content, and the steps of a wash
)

// String names the role in logs.
func (r Role) String() string {
	switch r {
	case RoleEnclave:
		return "enclave"
	case RoleParent:
		return "parent"
	default:
		return "none"
	}
}

// may says whether the role may ask for target, a path as it stands in the
// request line. It is compared byte by byte, undecoded: a query, an encoded
// slash, a dot segment or an absolute URL makes it another target.
func (r Role) may(method, target string) bool {
	switch method + " " + target {
	case "GET /health":
		return r == RoleEnclave || r == RoleParent
	case "GET /metrics", "POST " + api.PathWashPlant, "POST " + api.PathWashClear, "POST " + api.PathWashRestart, "POST " + api.PathWashCheck:
		return r == RoleParent
	case "GET /v1/models", "POST /v1/chat/completions", "POST /v1/completions", "POST " + api.PathHostAttestation:
		return r == RoleEnclave
	default:
		return false
	}
}

// DefaultMaxBodyBytes limits a request's body unless GuardConfig says otherwise.
const DefaultMaxBodyBytes = 32 << 20

// GuardConfig says what to guard and from whom.
type GuardConfig struct {
	// Upstream is the engine: "unix:/path/to/socket" or "http://host:port"
	// (https too). A URL may end in /v1, as an OpenAI base URL does.
	Upstream string
	// TLS is the guard's side of mutual TLS. It has to require and verify
	// client certificates. Needed by Serve.
	TLS *tls.Config
	// Role says who sent a request, from the verified certificate in its TLS
	// state.
	Role func(*http.Request) Role
	// Cache is how tenants are kept apart in the engine's prefix cache, one of
	// [Caches]; empty means none: then the engine must reuse no prompts.
	Cache string
	// Slots is how many the engine has, for the cache of that name.
	Slots int
	// MaxBodyBytes is the most that a request's body may have; 0 means
	// DefaultMaxBodyBytes.
	MaxBodyBytes int64
	// ShutdownGrace is how long answers under way may take to finish when
	// Serve ends; 0 means 5 s.
	ShutdownGrace time.Duration
	// AttestHost has the host vouch for the key of the guard's certificate, with a
	// nonce, and returns the document. nil: the host is not attested.
	AttestHost func(ctx context.Context, nonce []byte) ([]byte, error)
	// Control is where the engine's supervisor takes orders to restart it:
	// "unix:/path/to/socket" ([supervisor.Run]). Empty: washes cannot have it
	// restarted. The engine must be this guard's alone.
	Control string
	// ReadyTimeout is how long an engine may take until it answers when it was
	// restarted; 0 means 10 min.
	ReadyTimeout time.Duration
	// Logger gets role, path, status and duration of each request at level
	// debug, never a header or a body. nil means silence.
	Logger *slog.Logger
}

// Guard passes the requests that a caller's role allows to an engine, and its
// answers back, as they come. Content-Type, Content-Length, Accept and (on the
// way back) Retry-After are the only headers that go through, in either
// direction; trailers, interim responses and upgrades do not. It adds to a
// completion what keeps its prompt from being found in the engine's cache by
// others, and says on the answer how ([api.HeaderCache]). An answer that
// the engine did not finish ends in a broken stream, never in one that looks
// complete. It is safe for concurrent use.
type Guard struct {
	cfg      GuardConfig
	cache    cache
	base     string // scheme and host of the upstream URL
	upstream *http.Transport
	washer   washer
	log      *slog.Logger
	host     sync.Mutex // one attestation at a time
}

// NewGuard checks the configuration. It does not look whether the engine is
// there: as long as it is not, requests are answered with 503.
func NewGuard(cfg GuardConfig) (*Guard, error) {
	if cfg.Role == nil {
		return nil, errors.New("engine guard: Role is missing")
	}
	if cfg.MaxBodyBytes == 0 {
		cfg.MaxBodyBytes = DefaultMaxBodyBytes
	}
	if cfg.ShutdownGrace == 0 {
		cfg.ShutdownGrace = 5 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.Cache = cmp.Or(cfg.Cache, api.CacheNone)
	cfg.ReadyTimeout = cmp.Or(cfg.ReadyTimeout, 10*time.Minute)
	g := &Guard{cfg: cfg, log: cfg.Logger}
	var err error
	if g.cache, err = newCache(cfg.Cache, cfg.Slots, g.countSlots); err != nil {
		return nil, err
	}
	g.washer.guard, g.washer.pause = g, plantPause
	if cfg.Control != "" {
		path, isUnix := strings.CutPrefix(cfg.Control, "unix:")
		if !isUnix || path == "" {
			return nil, errors.New("engine guard: the engine's control socket is not unix:/path")
		}
		g.washer.control = path
	}
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	g.upstream = &http.Transport{
		DialContext:        dialer.DialContext,
		DisableCompression: true,
		// An engine that closes an idle connection while a prompt is on its way
		// into it makes a request fail that nobody may repeat (llama.cpp does
		// so after 5 s). A connection each costs some 50 µs on a socket.
		DisableKeepAlives: true,
	}
	if path, ok := strings.CutPrefix(cfg.Upstream, "unix:"); ok {
		if path == "" {
			return nil, errors.New("engine guard: upstream unix: has no path")
		}
		g.base = "http://engine"
		g.upstream.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", path)
		}
		return g, nil
	}
	u, err := url.Parse(cfg.Upstream)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("engine guard: upstream is neither unix:/path nor http://host:port")
	}
	if p := strings.TrimSuffix(u.Path, "/"); p != "" && p != "/v1" {
		return nil, fmt.Errorf("engine guard: upstream has the path %s: give the address alone, or with /v1", u.Path)
	}
	g.base = u.Scheme + "://" + u.Host
	return g, nil
}

// Serve answers on l, over mutual TLS, HTTP/1.1 and HTTP/2, until ctx ends. It
// closes l. nil says that it ended because ctx did.
func (g *Guard) Serve(ctx context.Context, l net.Listener) error {
	if g.cfg.TLS == nil || g.cfg.TLS.ClientAuth < tls.RequireAnyClientCert {
		_ = l.Close()
		return errors.New("engine guard: TLS does not require a client certificate")
	}
	server := &http.Server{
		Handler:           g,
		TLSConfig:         g.cfg.TLS,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(g.log.Handler(), slog.LevelDebug), // handshakes that failed
	}
	ended := make(chan error, 1)
	go func() { ended <- server.ServeTLS(l, "", "") }()
	select {
	case err := <-ended:
		return fmt.Errorf("engine guard: %w", err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), g.cfg.ShutdownGrace)
	defer cancel()
	if server.Shutdown(grace) != nil {
		_ = server.Close() // cuts what is still under way
	}
	<-ended
	return nil
}

// ServeHTTP answers one request.
func (g *Guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	role, began := g.cfg.Role(r), time.Now()
	if !role.may(r.Method, r.RequestURI) {
		// Neither path nor method is logged: what is not on the list may be anything.
		g.log.Warn("request refused", "role", role)
		api.Errorf(http.StatusForbidden, "not_allowed", "the engine's guard does not let this caller ask for that").Write(w)
		return
	}
	path := r.RequestURI // one of the list, from here on
	if path == api.PathHostAttestation {
		g.attestHost(w, r)
		return
	}
	outcome := "cut"
	defer func() { // also when the response is aborted by a panic
		g.log.Debug("request", "role", role, "path", path, "outcome", outcome, "took", time.Since(began))
	}()
	if strings.HasPrefix(path, "/wash/") {
		outcome = g.washer.serve(w, r, path)
		return
	}
	if r.ContentLength > g.cfg.MaxBodyBytes {
		outcome = "too large"
		g.tooLarge().Write(w)
		return
	}
	body, err := g.enter(w, r)
	if err != nil {
		outcome = g.notEntered(w, err)
		return
	}
	end := endRefused
	defer func() { body.leave(end) }()
	resp, err := g.ask(r, path, body)
	if err == nil && path == "/health" && resp.StatusCode == http.StatusNotFound {
		// Health is not part of OpenAI's API; an engine that lists its models is
		// there.
		_ = resp.Body.Close()
		resp, err = g.ask(r, "/v1/models", body)
	}
	if err != nil {
		if !notDialled(err) {
			end = endVanished
		}
		if r.Context().Err() != nil {
			outcome = "caller gone"
			panic(http.ErrAbortHandler)
		}
		e := g.failure(err)
		outcome = e.Code
		if e.Code == codeUnavailable {
			w.Header().Set(api.HeaderNotRun, "1")
		}
		e.Write(w)
		return
	}
	defer func() { _ = resp.Body.Close() }()
	switch r.Method {
	case http.MethodPost:
		w.Header().Set(api.HeaderCache, g.cfg.Cache)
	default:
		g.addQueue(path, resp)
	}
	if err := pass(w, resp); err != nil {
		end = endVanished
		panic(http.ErrAbortHandler) // a whole-looking end would be a lie
	}
	if resp.StatusCode == http.StatusOK {
		end = endAnswered
	}
	outcome = "complete"
}

// enter prepares a request for the engine; one without a body needs nothing.
func (g *Guard) enter(w http.ResponseWriter, r *http.Request) (*entry, error) {
	if r.Method != http.MethodPost {
		return &entry{leave: func(ending) {}}, nil
	}
	return g.cache.enter(r.Context(), r.Header.Get(api.HeaderCacheSalt), http.MaxBytesReader(w, r.Body, g.cfg.MaxBodyBytes), r.ContentLength)
}

// notEntered answers a request that did not get as far as the engine, and gives
// the outcome.
func (g *Guard) notEntered(w http.ResponseWriter, err error) (outcome string) {
	var tooLarge *http.MaxBytesError
	var e *api.Error
	switch {
	case errors.As(err, &tooLarge):
		e = g.tooLarge()
	case errors.Is(err, errSalt), errors.Is(err, errBody):
		e = api.Errorf(http.StatusBadRequest, "invalid_request", "%v", err)
	case errors.Is(err, errSlots):
		g.log.Error("no request is passed on", "error", err)
		fallthrough
	case notDialled(err):
		e = errUnavailable()
		w.Header().Set(api.HeaderNotRun, "1")
	default: // the caller's body ended early, or the caller has gone while it waited
		panic(http.ErrAbortHandler)
	}
	e.Write(w)
	return e.Code
}

// addQueue adds who waits here to the engine's own metrics, which do not have them.
func (g *Guard) addQueue(path string, resp *http.Response) {
	if path != "/metrics" || resp.StatusCode != http.StatusOK || g.cfg.Cache != api.CacheSlots {
		return
	}
	resp.Header.Del("Content-Length")
	waiting := fmt.Sprintf("\n# TYPE %[1]s gauge\n%[1]s %[2]d\n", engineload.GuardWaiting, g.cache.queued())
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(resp.Body, strings.NewReader(waiting)), resp.Body}
}

// ask sends the request to the engine, with what of it may go there. The
// engine's request ends with the caller's.
func (g *Guard) ask(r *http.Request, path string, entered *entry) (*http.Response, error) {
	var body io.Reader
	if entered.body != nil {
		body = entered.body
	}
	out, err := http.NewRequestWithContext(r.Context(), r.Method, g.base+path, body)
	if err != nil {
		return nil, err
	}
	if body != nil {
		out.ContentLength = entered.length
	}
	copyHeaders(out.Header, r.Header, "Content-Type", "Accept")
	out.Header.Set("User-Agent", "") // else net/http names itself
	resp, err := g.upstream.RoundTrip(out)
	if err != nil {
		return nil, err
	}
	// The end of an answer without length or chunks is the end of the
	// connection, which a crash of the engine looks like too.
	if resp.ProtoMajor == 1 && resp.ContentLength < 0 && len(resp.TransferEncoding) == 0 {
		_ = resp.Body.Close()
		return nil, errors.New("the engine's answer has no length")
	}
	return resp, nil
}

// codeUnavailable says that the engine could not be asked at all.
const codeUnavailable = "engine_unavailable"

// failure turns an error before the first byte of an answer into what the
// caller is told. The error itself is dropped: it can quote the engine.
func (g *Guard) failure(err error) *api.Error {
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return g.tooLarge()
	}
	if notDialled(err) {
		return errUnavailable()
	}
	return api.Errorf(http.StatusBadGateway, "engine_failed", "the engine broke off before it answered")
}

func errUnavailable() *api.Error {
	e := api.Errorf(http.StatusServiceUnavailable, codeUnavailable, "the engine is not running or is still starting: try again")
	e.RetryAfter = time.Second
	return e
}

// countSlots asks llama.cpp.
func (g *Guard) countSlots(ctx context.Context) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.base+"/props", nil)
	if err != nil {
		return 0, err
	}
	resp, err := g.upstream.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	var props struct {
		Slots int `json:"total_slots"`
	}
	const most = 4 << 20 // the chat template is in it, too
	if err := json.NewDecoder(io.LimitReader(resp.Body, most)).Decode(&props); err != nil || resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%w: it does not say how many, and is no llama.cpp", errSlots)
	}
	return props.Slots, nil
}

// notDialled says that the engine could not be asked at all.
func notDialled(err error) bool {
	var network *net.OpError
	return errors.As(err, &network) && network.Op == "dial"
}

func (g *Guard) tooLarge() *api.Error {
	return api.Errorf(http.StatusRequestEntityTooLarge, "request_too_large", "the request is larger than %d bytes", g.cfg.MaxBodyBytes)
}

// pass copies an answer and flushes whenever the engine pauses.
func pass(w http.ResponseWriter, resp *http.Response) error {
	copyHeaders(w.Header(), resp.Header, "Content-Type", "Content-Length", "Retry-After")
	w.WriteHeader(resp.StatusCode)
	flush := http.NewResponseController(w).Flush
	if err := flush(); err != nil {
		return err
	}
	buf := make([]byte, 16<<10)
	defer clear(buf)
	for {
		n, readErr := resp.Body.Read(buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return err
			}
			if err := flush(); err != nil {
				return err
			}
		}
		if errors.Is(readErr, io.EOF) {
			return nil
		}
		if readErr != nil {
			return readErr
		}
	}
}

// copyHeaders copies the first value of each named header that is there.
func copyHeaders(to, from http.Header, names ...string) {
	for _, name := range names {
		if value := from.Get(name); value != "" {
			to.Set(name, value)
		}
	}
}
