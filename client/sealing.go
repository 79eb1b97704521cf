package client

import (
	"errors"
	"io"
	"sync"

	"github.com/mrgc/mrgc/internal/seal"
)

// sealing is a request's body, sealed while its headers are on their way: those who
// route it need nothing of the body, and public-key operations for several recipients
// take about as long as routing. It is one envelope, however often it is read: what
// net/http sends again, on another connection, are the same bytes.
type sealing struct {
	prepared *seal.Prepared
	rand     io.Reader

	mu     sync.Mutex   // held while sealing
	sealed *seal.Sealed // guarded by mu; nil before it was asked for
	err    error        // guarded by mu: why it cannot be sealed
	over   bool         // guarded by mu
}

// errOver says that nobody wants the body any more.
var errOver = errors.New("the request is over")

// seal seals the request, the first time.
func (s *sealing) seal() (*seal.Sealed, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.over:
		return nil, errOver
	case s.sealed == nil && s.err == nil:
		s.sealed, s.err = s.prepared.Seal(s.rand)
	}
	return s.sealed, s.err
}

// failed is why the request could not be sealed; nil: it was, or nobody has asked for it.
func (s *sealing) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// end waits for sealing that is under way. Afterwards nothing reads what the body is
// made of, and no answer can be opened but by readers that there are.
func (s *sealing) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	if s.sealed != nil {
		s.sealed.Wipe()
	}
}

// reader reads the body from its start. The first one to be read has it sealed.
func (s *sealing) reader() io.ReadCloser { return &sealingReader{of: s} }

type sealingReader struct {
	of     *sealing
	body   []byte // nil before the first Read
	offset int
}

// Read gives io.EOF together with the last bytes, so that the last frame on the wire
// can say that it is.
func (r *sealingReader) Read(p []byte) (n int, err error) {
	if r.body == nil {
		sealed, err := r.of.seal()
		if err != nil {
			return 0, err
		}
		r.body = sealed.Body
	}
	n = copy(p, r.body[r.offset:])
	if r.offset += n; r.offset == len(r.body) {
		err = io.EOF
	}
	return n, err
}

func (r *sealingReader) Close() error { return nil }
