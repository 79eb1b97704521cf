package client

import (
	"io"

	"github.com/mrgc/mrgc/internal/credential"
	"github.com/mrgc/mrgc/internal/seal"
)

// Routed is what those who route a request see of it.
func Routed(op seal.Operation, body []byte, key *credential.Key) (size, affinity string, err error) {
	q, refused := readQuestion(op, body, key, &Policy{})
	if refused != nil {
		return "", "", refused
	}
	return q.size, q.affinity, nil
}

// Homes is homes.
type Homes struct{ *homes }

// MaxHomes is maxHomes.
const MaxHomes = maxHomes

// NewHomes makes empty ones.
func NewHomes() Homes { return Homes{newHomes()} }

// Get is get.
func (h Homes) Get(affinity string) (seal.KeyID, bool) { return h.get(affinity) }

// Set is set.
func (h Homes) Set(affinity string, kid seal.KeyID) { h.set(affinity, kid) }

// Probing says whether a region is being asked whether it is back.
func (c *Client) Probing() bool {
	for _, r := range c.regions {
		probing := false
		r.update(func(s *reach) { probing = s.probing })
		if probing {
			return true
		}
	}
	return false
}

// SetRand has DEKs drawn from there: what a request is sealed with is drawn when it is
// sealed.
func (c *Client) SetRand(r io.Reader) { c.rand = r }

// Sealing is sealing.
type Sealing struct{ *sealing }

// NewSealing makes one.
func NewSealing(prepared *seal.Prepared, rand io.Reader) Sealing {
	return Sealing{&sealing{prepared: prepared, rand: rand}}
}

// Reader is reader.
func (s Sealing) Reader() io.ReadCloser { return s.reader() }

// End is end.
func (s Sealing) End() { s.end() }
