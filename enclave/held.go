package enclave

import (
	"errors"
	"io"
	"sync/atomic"
)

// heldAtOnce is how many of the largest requests are held at once, all others' bytes
// counted in. One takes some six times its size while it is opened and written anew, and
// an enclave that runs out of memory is gone, with the keys of all its tenants.
const heldAtOnce = 8

var errHeld = errors.New("requests of too many bytes are held")

// heldBytes are those of all requests whose plaintext, or what becomes of it, is in
// memory.
type heldBytes struct {
	limit int64
	now   atomic.Int64
}

// hold counts what is read of a request's body until release is called. What would be
// too much is not read.
func (h *heldBytes) hold(body io.ReadCloser) *heldBody { return &heldBody{ReadCloser: body, of: h} }

// heldBody is a request's body. Only one goroutine reads it; release may be called by any.
type heldBody struct {
	io.ReadCloser
	of    *heldBytes
	bytes atomic.Int64
}

func (b *heldBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.bytes.Add(int64(n))
	if b.of.now.Add(int64(n)) > b.of.limit {
		return 0, errHeld
	}
	return n, err
}

func (b *heldBody) release() {
	b.of.now.Add(-b.bytes.Swap(0))
}
