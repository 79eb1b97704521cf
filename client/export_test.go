package client

import (
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
