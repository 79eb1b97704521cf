package enclave

import (
	"io"
	"time"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/seal"
)

// CheckRequest is checkRequest for the fuzz test: what the engine would get, and
// the size that must have been declared.
func CheckRequest(op seal.Operation, model string, body []byte) (out []byte, size string, refused *api.Error) {
	request, refused := checkRequest(op, model, body)
	return request.body, request.size.String(), refused
}

// CopyEvents is copyAnswer for a stream.
func CopyEvents(answer *seal.ResponseWriter, engine io.Reader, usageAsked bool, wait time.Duration) error {
	r := newReply(answer, nil, &seal.Opened{Operation: seal.OpChatCompletions, Model: "m"}, testKey(), seal.HostAsserted{}, time.Now)
	r.receipt.Enclave.Status = 200
	_, _, err := copyAnswer(r, io.NopCloser(engine), engineRequest{stream: true, usageAsked: usageAsked}, wait)
	return err
}

// testKey is of nobody.
func testKey() attestedKey {
	key, err := newKeyring(&Config{Model: "m", Region: "use1", Mode: seal.ModeProcess}).newKey(time.Now())
	if err != nil {
		panic(err)
	}
	return key
}

// AllowedFields are the fields that reach the engine.
func AllowedFields(op seal.Operation) map[string]bool {
	allowed := map[string]bool{}
	for name := range fieldsOf[op] {
		allowed[name] = true
	}
	for _, name := range unforwarded {
		delete(allowed, name)
	}
	return allowed
}

// NewSecretBody is a request body over content, and what wipes it.
func NewSecretBody(content []byte) (open func() (io.ReadCloser, error), wipe func()) {
	b := &secretBody{bytes: content}
	return b.open, b.wipe
}

// KeyReleasesAfter is what is told after n releases.
func KeyReleasesAfter(n int, enclaveName string, sequence uint64) api.KeyReleases {
	var k keyReleases
	for range n {
		k.add(api.KeyRelease{})
	}
	return k.after(enclaveName, sequence)
}

// Epoch is one whose key is to be held: it is offered from Start on, and opens
// requests until NotAfter.
type Epoch struct{ Start, NotAfter time.Time }

// WantedEpochs is wantedEpochs.
func WantedEpochs(now time.Time, length time.Duration) (wanted []Epoch) {
	for _, e := range wantedEpochs(now, length) {
		wanted = append(wanted, Epoch{e.start(), e.notAfter()})
	}
	return wanted
}

// ForgetFailure has a host be asked again at once.
func ForgetFailure(h *EngineHost) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last = time.Time{}
}

// ForgetVouched has every host be asked again.
func ForgetVouched(h *EngineHost) {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.vouched)
}

// HostAt has a host's check take the time from now.
func HostAt(h *EngineHost, now func() time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now = now
}

// HeldBytes is how many bytes of requests an enclave holds.
func HeldBytes(e *Enclave) int64 { return e.bytes.now.Load() }

// Salt is what an enclave with that secret derives: the salt as engines get it,
// and its id.
func Salt(secret [32]byte, tenant string, cacheSecret, own []byte) (text string, id seal.SaltID) {
	s := saltSecret(secret)
	salted := s.of(tenant, cacheSecret, own)
	return salted.text(), salted.id()
}

// MaxFailures is how many are remembered.
const MaxFailures = maxFailures

// AddFailures adds so many, and gives what says whether one is remembered.
func AddFailures(n int, id func(int) seal.RequestID) func(seal.RequestID) bool {
	var f failures
	for i := range n {
		f.add(id(i))
	}
	return f.has
}

// Pace is pace for its tests.
type Pace struct{ pace }

// NewPace is of a stream whose events wait so long.
func NewPace(wait time.Duration) *Pace { return &Pace{pace{wait: wait}} }

// Came is came.
func (p *Pace) Came(bytes int, now time.Time) { p.came(bytes, now) }

// Release is release.
func (p *Pace) Release(now time.Time) []int { return p.release(now) }

// All is all.
func (p *Pace) All() []int { return p.all() }

// Due is due.
func (p *Pace) Due() (time.Time, bool) { return p.due() }

// Pending is how many bytes wait.
func (p *Pace) Pending() int { return p.pending }
