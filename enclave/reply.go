package enclave

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"hash"
	"net/http"
	"sync"
	"time"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/seal"
)

// reply is a sealed answer whose end carries a receipt.
type reply struct {
	sealing *seal.ResponseWriter
	out     *flushWriter            // what sealing writes to; nil: something else
	pieces  func(full, n int) []int // the frames of an answer in one piece, as [seal.Frames] gives them
	receipt seal.Receipt
	key     ed25519.PrivateKey
	data    hash.Hash // of the answer's data
	now     func() time.Time
	sent    func() // called when the engine has all of the request, and nothing of it is held here any more: by any goroutine, perhaps twice
}

// newReply begins the answer to a request that key has opened. What the host
// says of itself is from before the request.
func newReply(sealing *seal.ResponseWriter, out *flushWriter, opened *seal.Opened, key attestedKey, host seal.HostAsserted, now func() time.Time) *reply {
	return &reply{
		pieces: seal.Frames, sealing: sealing, out: out, key: key.receipts, data: sha256.New(), now: now, sent: func() {},
		receipt: seal.Receipt{
			Enclave: seal.EnclaveVerified{
				ClaimsSHA256: key.key.ClaimsDigest(), RequestID: opened.RequestID, Operation: opened.Operation, Model: opened.Model,
				RequestSHA256: sha256.Sum256(opened.Payload.Body),
			},
			Host: host,
		},
	}
}

func (r *reply) WriteHead(h seal.Head) error {
	r.receipt.Enclave.Status = h.Status
	return r.sealing.WriteHead(h)
}

// WriteFrames writes what is answered, in frames of these capacities.
func (r *reply) WriteFrames(p []byte, frames []int) error {
	r.data.Write(p) // never fails
	return r.sealing.WriteFrames(p, frames)
}

// WritePiece writes what is left of an answer in one piece, after so many of the
// largest frames, in frames that tell little of its length.
func (r *reply) WritePiece(full int, p []byte) error { return r.WriteFrames(p, r.pieces(full, len(p))) }

// Ends says that the answer's last chunks are written now, one right after the
// other: they leave together.
func (r *reply) Ends() {
	if r.out != nil {
		r.out.ending = true
	}
}

func (r *reply) Fail(errorJSON []byte) error { return r.sealing.Fail(errorJSON) }

// Close ends a complete answer with what it has used, and its receipt.
func (r *reply) Close(end seal.End) error {
	r.data.Sum(r.receipt.Enclave.ResponseSHA256[:0])
	r.receipt.Enclave.EndedAt = r.now()
	r.receipt.Host.PromptTokens, r.receipt.Host.OutputTokens = end.PromptTokens, end.OutputTokens
	var err error
	if end.Receipt, err = r.receipt.Sign(r.key); err != nil {
		return err
	}
	return r.sealing.Close(end)
}

// Wipe clears what was held of the answer. A hash keeps the last bytes that do
// not fill a block, even after Reset: zeros take their place.
func (r *reply) Wipe() {
	r.sealing.Wipe()
	r.data.Reset()
	var zeros [sha256.BlockSize]byte
	r.data.Write(zeros[:1]) // a whole block would not pass through its memory
	r.data.Write(zeros[1:])
}

// hostSays is what the parent said last.
type hostSays struct {
	mu   sync.Mutex
	last seal.HostAsserted // guarded by mu
}

func (h *hostSays) statement() seal.HostAsserted {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.last
}

func (h *hostSays) set(s seal.HostAsserted) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last = s
}

// takeHost takes what receipts repeat from the parent. What would not fit into
// one is refused here, so that it cannot break answers.
func (e *Enclave) takeHost(w http.ResponseWriter, r *http.Request) {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4<<10))
	dec.DisallowUnknownFields()
	var said api.Host
	err := dec.Decode(&said)
	host := seal.HostAsserted{ModelVersion: said.ModelVersion}
	if said.WashID != "" {
		host.LastWash = seal.Wash{ID: said.WashID, EndedAt: said.WashEndedAt}
	}
	if err == nil {
		err = host.Check()
	}
	if err != nil {
		api.Errorf(http.StatusBadRequest, "invalid_request", "%v", err).Write(w)
		return
	}
	e.host.set(host)
	w.WriteHeader(http.StatusNoContent)
}
