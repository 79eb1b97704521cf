// Package client is a tenant's side of MRGC: an [http.RoundTripper] that seals
// requests of OpenAI's API to attested enclaves.
//
// Any Go SDK for OpenAI's API uses it by way of its HTTP client:
//
//	c, err := client.New(client.Config{Endpoints: []string{"https://use1.example.com"}, …})
//	httpClient := &http.Client{Transport: c}
//	// openai.NewClient(option.WithHTTPClient(httpClient), option.WithAPIKey(key), …)
//
// Other languages reach it through [Client.Handler], which `mrgc connect` serves
// on loopback. In both, the API key that the SDK sends ("Authorization: Bearer
// mrgc-…") ends here: what leaves this process is derived from it (package
// credential).
//
// The client trusts no server. It fetches recipients, verifies each one's
// attestation against its own [Policy], seals to those that remain, and opens
// the answer; an answer that was cut is an error of its Body, never a short
// answer. An error that comes unsealed could have been forged by anyone on the
// way: it can make a request fail, and nothing else.
//
// Those who route a request see its model, its size in buckets, and a key that is
// the same for all requests of one conversation ([Policy.NoAffinity] leaves it
// out). When an answer's Body has been read to its end, the response's Trailer
// says in Mrgc-Usage what the engine has counted, "prompt/output" in tokens,
// sealed like the rest. Its end carries a receipt that the enclave has signed
// ([Config.Receipts], [Receipt.Verify]).
package client

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/credential"
	"github.com/mrgc/mrgc/internal/seal"
)

// Config says where the cluster is and what is trusted.
type Config struct {
	// Endpoints are the regions' URLs, "https://host[:port]", every one that the
	// tenant may use, in order of preference. The next is tried when one gives no
	// answer, or says that the tenant's data may not be there; one that gives none
	// is passed over until it is seen to be back.
	Endpoints []string
	// RootCAs verifies the endpoints' TLS certificates; nil: the system's roots.
	RootCAs *x509.CertPool
	// ClientCertificate, when set, gives the certificate that is shown to the endpoints,
	// as in [tls.Config.GetClientCertificate]. It names the tenant to them in place of
	// the edge token, which is then not sent; who has been told nothing about
	// certificates has none. What is sealed still has the key's enclave token in it:
	// TLS ends before the enclave.
	ClientCertificate func(*tls.CertificateRequestInfo) (*tls.Certificate, error)
	// Policy decides which recipients are trusted.
	Policy Policy
	// DataKeys, when set, has every request opened under a KMS key of the tenant's
	// own: an enclave that the policy trusts can read one only if KMS releases its
	// data key to that enclave. nil: enclaves open requests by their own keys.
	DataKeys DataKeys

	RequestBodyBytes int64         // largest request in clear; default 4 MiB
	RequestLifetime  time.Duration // how long a sealed request may take to reach an enclave; default 60 s, at most [seal.MaxLifetime]
	// Recipients is how many keys a request is sealed to, 1 to 4; default 3. It can
	// run once for each, and once more for each in a region that it had to be sent on
	// to. With 1 it cannot run twice: once it may have reached a region it is sent to
	// no other.
	Recipients int

	// Receipts, when set, gets the receipt of each answer that is complete, before
	// the answer's Body ends. requestID is what the answer's Mrgc-Request-Id says.
	Receipts func(requestID string, receipt Receipt)

	Logger *slog.Logger     // default: none
	Now    func() time.Time // default: time.Now
}

// Client seals requests. It is safe for concurrent use.
type Client struct {
	config     Config
	trust      atomic.Pointer[trust] // never nil
	regions    []*region             // in order of preference
	http       *http.Client
	rand       io.Reader // for DEKs
	recipients *recipientCache
	homes      *homes
	requests   atomic.Uint64
	resealed   atomic.Uint64
	moved      atomic.Uint64
}

// Stats are what a client has done since it was made.
type Stats struct {
	Requests uint64 // that were sealed
	Resealed uint64 // of these, sealed once more, as nobody held the first recipients' keys any more
	Moved    uint64 // times that anything was sent on to another region, as one gave no answer
}

// Stats gives the numbers so far.
func (c *Client) Stats() Stats {
	return Stats{Requests: c.requests.Load(), Resealed: c.resealed.Load(), Moved: c.moved.Load()}
}

// New checks the configuration. It connects to nothing yet.
func New(config Config) (*Client, error) {
	config.RequestBodyBytes = cmp.Or(config.RequestBodyBytes, 4<<20)
	config.RequestLifetime = cmp.Or(config.RequestLifetime, time.Minute)
	config.Recipients = cmp.Or(config.Recipients, api.Offered)
	config.Logger = cmp.Or(config.Logger, slog.New(slog.DiscardHandler))
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.RequestLifetime < time.Second || config.RequestLifetime > seal.MaxLifetime {
		return nil, fmt.Errorf("client: request lifetime %s, want 1s to %s", config.RequestLifetime, seal.MaxLifetime)
	}
	if config.RequestBodyBytes < 0 {
		return nil, fmt.Errorf("client: requests of at most %d bytes", config.RequestBodyBytes)
	}
	if config.Recipients < 1 || config.Recipients > seal.MaxRecipients {
		return nil, fmt.Errorf("client: %d recipients per request, want 1 to %d", config.Recipients, seal.MaxRecipients)
	}
	if err := config.Policy.check(); err != nil {
		return nil, err
	}
	if config.DataKeys != nil {
		if err := config.Policy.confine(config.DataKeys.Region()); err != nil {
			return nil, err
		}
	}
	c := &Client{config: config, rand: rand.Reader}
	c.trust.Store(&trust{releases: config.Policy.Releases, minVersion: config.Policy.MinVersion})
	if len(config.Endpoints) == 0 {
		return nil, errors.New("client: no endpoint")
	}
	for _, text := range config.Endpoints {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
			return nil, fmt.Errorf("client: endpoint %q: want https://host[:port]", text)
		}
		c.regions = append(c.regions, &region{place: len(c.regions), url: u})
	}
	c.http = newHTTPClient(&config)
	c.recipients = newRecipientCache(c)
	c.homes = newHomes()
	return c, nil
}

const (
	// connectTimeout is how long a region may take to accept a connection, and then
	// for TLS, before the next one is tried. Twice it fits into the three seconds in
	// which a request is to be elsewhere; it has room for one lost SYN, which is sent
	// again after a second.
	connectTimeout = 1500 * time.Millisecond
	// A connection on which nothing comes is asked after pingAfter whether anybody is
	// there, and is broken when pingTimeout later nobody has said so: a network that
	// was cut tells nobody.
	pingAfter   = time.Second
	pingTimeout = 1500 * time.Millisecond
)

func newHTTPClient(config *Config) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: config.RootCAs, GetClientCertificate: config.ClientCertificate},
			DialContext:         (&net.Dialer{Timeout: connectTimeout}).DialContext,
			TLSHandshakeTimeout: connectTimeout,
			ForceAttemptHTTP2:   true,
			HTTP2:               &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
			MaxIdleConnsPerHost: 32,
			IdleConnTimeout:     90 * time.Second,
			Proxy:               http.ProxyFromEnvironment,
			DisableCompression:  true, // sealed bytes do not compress
		},
		// Requests go to the endpoints that the tenant named, and nowhere else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// CloseIdleConnections closes connections that no request uses. [http.Client]'s
// method of that name calls it.
func (c *Client) CloseIdleConnections() { c.http.CloseIdleConnections() }

// operationOf reads a path from its end: SDKs put their base URL's path in front.
func operationOf(path string) (seal.Operation, bool) {
	for _, op := range []seal.Operation{seal.OpChatCompletions, seal.OpCompletions} {
		if strings.HasSuffix(path, strings.TrimPrefix(op.Path(), "/v1")) {
			return op, true
		}
	}
	return 0, false
}

// RoundTrip answers a request of OpenAI's API. What the tenant did wrong, and
// what the cluster refuses, is a response with an error in OpenAI's shape; an
// error is returned only when no endpoint can be reached or ctx has ended. The
// response's X-Request-Id is the id by which the cluster's operator finds what was
// sent (`mrgc explain`), if anything was.
func (c *Client) RoundTrip(req *http.Request) (*http.Response, error) {
	body := req.Body
	if body == nil {
		body = http.NoBody
	}
	defer body.Close()
	resp, err := c.do(req, body)
	var refused *api.Error
	if errors.As(err, &refused) {
		resp, err = errorResponse(req, refused, requestIDOf(err)), nil
	}
	return resp, err
}

func (c *Client) do(req *http.Request, from io.Reader) (*http.Response, error) {
	authorization, ok := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return nil, api.Errorf(http.StatusUnauthorized, "invalid_api_key", "no API key: send one as \"Authorization: Bearer mrgc-…\" (the SDK's api_key)")
	}
	key, err := credential.Parse(authorization)
	if err != nil {
		return nil, api.Errorf(http.StatusUnauthorized, "invalid_api_key", "%v", err)
	}
	if req.Method == http.MethodGet && strings.HasSuffix(req.URL.Path, "/models") {
		return c.models(req, &key)
	}
	operation, ok := operationOf(req.URL.Path)
	if !ok || req.Method != http.MethodPost {
		return nil, api.Errorf(http.StatusNotFound, "unsupported_operation",
			"%s %s is not offered: POST chat/completions, POST completions and GET models are", req.Method, req.URL.Path)
	}
	body, err := io.ReadAll(io.LimitReader(from, c.config.RequestBodyBytes+1))
	if err != nil {
		return nil, api.Errorf(http.StatusBadRequest, "invalid_request", "the request's body could not be read")
	}
	defer clear(body)
	if int64(len(body)) > c.config.RequestBodyBytes {
		return nil, api.Errorf(http.StatusRequestEntityTooLarge, "request_too_large", "the request is larger than %d bytes", c.config.RequestBodyBytes)
	}
	q, refused := readQuestion(operation, body, &key, &c.config.Policy)
	if refused != nil {
		return nil, refused
	}
	resp, err := c.sealAndSend(req, &key, q)
	if err != nil {
		return nil, &sentError{requestID: q.id, error: err}
	}
	setRequestID(resp.Header, q.id)
	return resp, nil
}

// sentError is what became of a request that was sealed.
type sentError struct {
	requestID string // empty: it was not
	error
}

func (e *sentError) Unwrap() error { return e.error }

// requestIDOf gives the id of the request that an error is about; empty if none
// was sealed.
func requestIDOf(err error) string {
	var sent *sentError
	if errors.As(err, &sent) {
		return sent.requestID
	}
	return ""
}

// sealAndSend seals the request to what a region offers and sends it there; to the
// next region's when that one gives no answer.
func (c *Client) sealAndSend(req *http.Request, key *credential.Key, q *question) (*http.Response, error) {
	c.requests.Add(1)
	c.probe(req.Context(), key, q.model)
	return eachRegion(req.Context(), c, key.Tenant(), c.config.Recipients == 1, func(r *region) (*http.Response, error) {
		return c.askRegion(req, key, q, r)
	})
}

// askRegion seals the request and sends it to a region, and once more with new
// recipients when those it was sealed to have gone.
func (c *Client) askRegion(req *http.Request, key *credential.Key, q *question, r *region) (*http.Response, error) {
	list, err := c.recipients.get(req.Context(), r, key, q.model)
	if err != nil {
		return nil, err
	}
	var home *recipient
	if kid, ok := c.homes.get(q.affinity); ok {
		home = list.find(kid)
	}
	recipients := list.choose(c.config.Recipients, home, c.recipients.turn.Add(1))
	resp, err := c.send(req, r, key, q, recipients)
	if !errors.Is(err, errStaleRecipients) {
		return resp, err
	}
	c.resealed.Add(1)
	c.config.Logger.Info("recipients have changed, sealing again", "model", q.model)
	resp, err = c.sealAgain(req, key, q, r, list, recipients)
	if errors.Is(err, errStaleRecipients) {
		stale := api.Errorf(http.StatusServiceUnavailable, "recipients_changing", "the cluster's instances are changing faster than requests reach them; try again")
		stale.RetryAfter = time.Second
		return nil, stale
	}
	return resp, err
}

// sealAgain seals to what the region offers now; to the fleet's key when it offers
// nothing else that is there. Nobody holds the keys of gone.
func (c *Client) sealAgain(req *http.Request, key *credential.Key, q *question, r *region, list recipientList, gone []*recipient) (*http.Response, error) {
	ofFleet := func(list recipientList, tried []*recipient, err error) (*http.Response, error) {
		if len(list.fleet) == 0 || slices.Contains(tried, list.fleet[0]) || req.Context().Err() != nil {
			return nil, err
		}
		c.config.Logger.Warn("none of the enclaves that are known is there, sealing to the fleet's key", "model", q.model)
		return c.send(req, r, key, q, list.fleet[:1])
	}
	newer, err := c.recipients.newer(req.Context(), r, key, q.model, list.version)
	if err != nil {
		return ofFleet(list, gone, err)
	}
	c.recipients.forget(r, q.model, gone)
	newer.earlier = nil // what was fetched just now is sure to be there
	to := newer.choose(c.config.Recipients, nil, c.recipients.turn.Add(1))
	resp, err := c.send(req, r, key, q, to)
	if errors.Is(err, errStaleRecipients) {
		return ofFleet(newer, to, err)
	}
	return resp, err
}

// errStaleRecipients is the cluster's hint, forgeable, that a request was
// sealed to keys that nobody holds any more.
var errStaleRecipients = errors.New("recipients are stale")

// send seals once.
func (c *Client) send(req *http.Request, r *region, key *credential.Key, q *question, recipients []*recipient) (*http.Response, error) {
	request := seal.Request{
		Operation: q.operation,
		Model:     q.model,
		Tenant:    key.Tenant(),
		Affinity:  q.affinity,
		Size:      q.size,
		Expiry:    c.config.Now().Add(c.config.RequestLifetime),
		Payload:   seal.Payload{Credential: key.EnclaveToken(), CacheSecret: key.CacheSecret(), Body: q.body},
	}
	defer clear(request.Payload.Credential)
	defer clear(request.Payload.CacheSecret)
	if _, err := rand.Read(request.RequestID[:]); err != nil {
		return nil, fmt.Errorf("client: draw a request id: %w", err)
	}
	q.id = request.RequestID.String()
	if c.config.DataKeys != nil {
		dataKey, refused := c.dataKey(req.Context(), &request)
		if refused != nil {
			return nil, refused
		}
		defer clear(dataKey.Plaintext)
		request.DataKey = dataKey
	}
	// Whatever list they are of: other releases may be trusted since it was made.
	var sealedTo []*seal.Recipient
	for _, r := range recipients {
		if c.recipients.trusted(r) {
			sealedTo = append(sealedTo, r.Recipient)
		}
	}
	if len(sealedTo) == 0 {
		return nil, api.Errorf(http.StatusBadGateway, "no_trusted_recipient", "the releases that are trusted have changed, and none of the enclaves that are known has one, so nothing was sent; try again")
	}
	prepared, err := seal.Prepare(request, sealedTo)
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	body := &sealing{prepared: prepared, rand: c.rand}
	defer body.end() // before what it is made of is cleared
	resp, err := c.post(req.Context(), r, key, body)
	if failed := body.failed(); failed != nil {
		if err == nil {
			_ = resp.Body.Close() // it answers what was never sent
		}
		return nil, fmt.Errorf("client: %w", failed)
	}
	if err != nil {
		return nil, err
	}
	if resp.Header.Get("Content-Type") != api.ContentTypeSealedResponse || resp.StatusCode != http.StatusOK {
		return nil, unsealedAnswer(resp)
	}
	sealed, err := body.seal()
	if err != nil {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("client: %w", err)
	}
	opened, answeredBy, err := openResponse(req, resp, sealed, c.receiptCheck(q, request.RequestID, recipients))
	if err == nil && q.affinity != "" {
		c.homes.set(q.affinity, answeredBy)
	}
	return opened, err
}

// post sends a request to a region, headers first, and its body when that is sealed.
func (c *Client) post(ctx context.Context, r *region, key *credential.Key, body *sealing) (*http.Response, error) {
	out, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url.JoinPath(api.PathSealed).String(), body.reader())
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	headers := &body.prepared.Headers
	out.ContentLength = int64(body.prepared.BodyBytes)
	out.GetBody = func() (io.ReadCloser, error) { return body.reader(), nil }
	h := out.Header
	h.Set("Content-Type", api.ContentTypeSealedRequest)
	h.Set(api.HeaderModel, headers.Model)
	h.Set(api.HeaderRequestID, headers.RequestID.String())
	h.Set(api.HeaderRecipients, seal.FormatKeyIDs(headers.KeyIDs))
	h.Set(api.HeaderFrames, api.FramesRead)
	if headers.Affinity != "" {
		h.Set(api.HeaderAffinity, headers.Affinity)
	}
	if headers.Size != "" {
		h.Set(api.HeaderSize, headers.Size)
	}
	return c.request(out, key)
}

// unsealedAnswer is the error for an answer that came in clear.
func unsealedAnswer(resp *http.Response) error {
	defer resp.Body.Close()
	if resp.Header.Get(api.HeaderKeyStatus) == api.KeyStatusStale {
		return errStaleRecipients
	}
	if resp.StatusCode < http.StatusBadRequest {
		return api.Errorf(http.StatusBadGateway, "unsealed_answer", "the answer was not sealed and has been refused")
	}
	return readError(resp)
}

const maxErrorBytes = 64 << 10

func readError(resp *http.Response) error {
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBytes))
	if err != nil {
		body = nil // the status is what is left
	}
	e := api.ParseError(resp.StatusCode, body)
	if seconds, err := time.ParseDuration(resp.Header.Get("Retry-After") + "s"); err == nil {
		e.RetryAfter = seconds
	}
	return e
}

// models passes the list of models on. It is not sealed: it is not secret, and
// what it says is checked by attestation when a model is used.
func (c *Client) models(req *http.Request, key *credential.Key) (*http.Response, error) {
	models, err := eachRegion(req.Context(), c, key.Tenant(), false, func(r *region) (*api.Models, error) {
		return c.modelsOf(req.Context(), r, key)
	})
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(models)
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	return response(req, http.StatusOK, "application/json", io.NopCloser(bytes.NewReader(body))), nil
}

func (c *Client) modelsOf(ctx context.Context, r *region, key *credential.Key) (*api.Models, error) {
	out, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url.JoinPath(api.PathModels).String(), nil)
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	resp, err := c.request(out, key)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, readError(resp)
	}
	var models api.Models
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxErrorBytes)).Decode(&models); err != nil {
		return nil, api.Errorf(http.StatusBadGateway, "unexpected_response", "the list of models cannot be read")
	}
	return &models, nil
}
