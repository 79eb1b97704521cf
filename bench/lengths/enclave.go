package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/mrgc/mrgc/enclave"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/credential"
	"github.com/mrgc/mrgc/internal/nsm"
	"github.com/mrgc/mrgc/internal/seal"
	"github.com/mrgc/mrgc/internal/tenant"
)

const (
	modelName  = "m"
	tenantName = "t"
)

// underTest is the enclave's service itself, between an engine that is none and a
// parent that is none.
type underTest struct {
	handler    http.Handler
	key        credential.Key
	recipients []*seal.Recipient
	engines    map[string]http.RoundTripper // by the request's user text
}

// noModule attests nothing: nobody here asks.
type noModule struct{}

func (noModule) Attest(context.Context, nsm.Request) ([]byte, error) { return []byte("none"), nil }

// RoundTrip finds the engine by what the request says.
func (u *underTest) RoundTrip(req *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	var asked struct {
		Messages []struct {
			Content string `json:"content"`
		} `json:"messages"`
	}
	if err := json.Unmarshal(body, &asked); err != nil || len(asked.Messages) != 1 {
		return nil, errors.Join(err, errors.New("not the request that was sealed"))
	}
	req.Body = http.NoBody
	return u.engines[asked.Messages[0].Content].RoundTrip(req)
}

// newEnclave starts one that has events wait for so long.
func newEnclave(ctx context.Context, wait time.Duration, engines map[string]http.RoundTripper) (u *underTest, err error) {
	u = &underTest{engines: engines}
	if u.key, err = credential.New(rand.Reader, tenantName); err != nil {
		return nil, err
	}
	_, signer, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, err
	}
	keeper, err := tenant.NewKeeper(signer.Public().(ed25519.PublicKey))
	if err != nil {
		return nil, err
	}
	digest := func(token []byte) tenant.Digests { return tenant.Digests{credential.DigestOf(token)} }
	list, err := tenant.Sign(signer, &tenant.List{Version: 1, ExpiresAt: time.Now().Add(time.Hour), Tenants: []tenant.Tenant{
		{Name: tenantName, EdgeTokens: digest(u.key.EdgeToken()), EnclaveTokens: digest(u.key.EnclaveToken())},
	}})
	if err != nil {
		return nil, err
	}
	if err := keeper.Offer(list, time.Now()); err != nil {
		return nil, err
	}
	service, err := enclave.New(ctx, enclave.Config{
		Model: modelName, Region: "use1", Mode: seal.ModeProcess, NSM: noModule{}, Tenants: keeper, Engine: u, ConcurrentRequests: 1 << 20, AnswerWait: wait,
		DocumentTime: func([]byte) (time.Time, error) { return time.Now(), nil },
	})
	if err != nil {
		return nil, err
	}
	u.handler = service.Handler()
	answer := httptest.NewRecorder()
	u.handler.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/recipients", nil))
	var offered api.Recipients
	if err := json.NewDecoder(answer.Body).Decode(&offered); err != nil {
		return nil, err
	}
	for _, o := range offered.Recipients {
		recipient, err := seal.ParseRecipient(o.Claims)
		if err != nil {
			return nil, err
		}
		u.recipients = append(u.recipients, recipient)
	}
	return u, nil
}

// seen is what whoever carries an answer sees of one write, and what the tenant then
// has of it.
type seen struct {
	bytes  int
	chunks int
	at     time.Time
	data   int // of the answer, in clear
}

// padding is what was added of zeros to a write of data.
func (s *seen) padding() int { return s.bytes - s.chunks*overhead - s.data }

// watcher is the parent: it keeps what it gets, and how it gets it. What is written
// is taken as seen: the enclave flushes each write but the head's.
type watcher struct {
	header http.Header
	wire   bytes.Buffer
	writes []seen
}

func (w *watcher) Header() http.Header { return w.header }
func (w *watcher) WriteHeader(int)     {}
func (w *watcher) Flush()              {}

func (w *watcher) Write(p []byte) (int, error) {
	chunks := p
	if len(w.writes) == 0 {
		chunks = p[prologueBytes:]
	}
	w.writes = append(w.writes, seen{bytes: len(p), chunks: chunksIn(chunks), at: time.Now()})
	return w.wire.Write(p)
}

// prologueBytes are before the first chunk of an answer.
const prologueBytes = 1 + 8 + 32

// chunksIn is how many chunks there are, by the lengths that they say.
func chunksIn(wire []byte) (n int) {
	for ; len(wire) > 0; n++ {
		wire = wire[3+int(binary.BigEndian.Uint16(wire[1:])):]
	}
	return n
}

// ask has the engine of a name answer, and gives what was seen of it.
func (u *underTest) ask(name string, stream bool) ([]seen, error) {
	writes, status, err := u.send(map[string]any{"model": modelName, "stream": stream, "messages": []map[string]string{{"role": "user", "content": name}}})
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("not answered, but %d", status)
	}
	return writes, err
}

// send asks anything, and gives what was seen of the answer, and the status in it.
func (u *underTest) send(asked map[string]any) (writes []seen, status int, err error) {
	text, err := json.Marshal(asked)
	if err != nil {
		return nil, 0, err
	}
	request := seal.Request{
		Operation: seal.OpChatCompletions, Model: modelName, Tenant: tenantName, Expiry: time.Now().Add(time.Minute),
		Payload: seal.Payload{Credential: u.key.EnclaveToken(), CacheSecret: u.key.CacheSecret(), Body: text},
	}
	_, _ = rand.Read(request.RequestID[:]) // never fails
	sealed, err := seal.Seal(rand.Reader, request, u.recipients[:1])
	if err != nil {
		return nil, 0, err
	}
	defer sealed.Wipe()
	req := httptest.NewRequest(http.MethodPost, api.PathSealed, bytes.NewReader(sealed.Body))
	req.Header.Set("Content-Type", api.ContentTypeSealedRequest)
	req.Header.Set(api.HeaderModel, sealed.Headers.Model)
	req.Header.Set(api.HeaderTenant, sealed.Headers.Tenant)
	req.Header.Set(api.HeaderRequestID, sealed.Headers.RequestID.String())
	req.Header.Set(api.HeaderRecipients, seal.FormatKeyIDs(sealed.Headers.KeyIDs))
	req.Header.Set(api.HeaderFrames, api.FramesRead)
	parent := &watcher{header: http.Header{}}
	u.handler.ServeHTTP(parent, req)
	status, err = parent.open(sealed)
	return parent.writes, status, err
}

// open has the tenant read what was written, and fills in what was in it.
func (w *watcher) open(sealed *seal.Sealed) (status int, err error) {
	written := w.wire.Len()
	answer := sealed.OpenResponse(&w.wire) // which reads a chunk at a time
	head, err := answer.Head()
	if err != nil {
		return 0, err
	}
	buffer := make([]byte, seal.MaxFrameData)
	for i, end := 0, w.writes[0].bytes; ; {
		n, err := answer.Read(buffer)
		for ; end < written-w.wire.Len(); end += w.writes[i].bytes {
			i++
		}
		w.writes[i].data += n
		switch {
		case errors.Is(err, io.EOF):
			return head.Status, nil
		case err != nil:
			return 0, err
		}
	}
}
