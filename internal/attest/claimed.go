package attest

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/fxamacker/cbor/v2"
)

// ClaimedTime is when a document says that it was made. Nothing of it is verified, not
// even that it is signed: it is for who has just had his own security module make it, to
// compare his clock with the module's. Whoever is shown a document wants [Verify].
func ClaimedTime(raw []byte) (time.Time, error) {
	at, err := claimedTime(raw)
	if err != nil {
		return time.Time{}, fmt.Errorf("attestation document: %w", err)
	}
	return at, nil
}

func claimedTime(raw []byte) (time.Time, error) {
	if len(raw) > maxDocumentSize {
		return time.Time{}, fmt.Errorf("%d bytes, more than %d", len(raw), maxDocumentSize)
	}
	if len(raw) > 0 && raw[0] == tagSign1 {
		raw = raw[1:]
	}
	dec, err := strictDecMode(cbor.IndefLengthForbidden)
	if err != nil {
		return time.Time{}, err
	}
	var message envelope
	if err := dec.Unmarshal(raw, &message); err != nil {
		return time.Time{}, fmt.Errorf("not a COSE_Sign1 message: %w", err)
	}
	var says payload
	if err := dec.Unmarshal(message.Payload, &says); err != nil {
		return time.Time{}, fmt.Errorf("payload: %w", err)
	}
	if says.Timestamp == 0 || says.Timestamp > math.MaxInt64 {
		return time.Time{}, errors.New("it has no time")
	}
	return time.UnixMilli(int64(says.Timestamp)), nil
}
