package seal

import (
	"errors"
	"fmt"
	"io"
)

// Classes of errors, for errors.Is. Anything else that a function of this
// package returns is an error of the reader or writer that it was given.
var (
	// ErrMalformed is an input that breaks a rule of the format which can be
	// checked without a key. Its text says which.
	ErrMalformed = errors.New("malformed")
	// ErrNotRecipient is an envelope that is well formed and sealed to others.
	ErrNotRecipient = errors.New("sealed to other recipients")
	// ErrExpired is an expiry that has passed or is too far ahead. A client that
	// sees it should look at its clock.
	ErrExpired = errors.New("request has expired or expires too far ahead: check the client's clock")
	// ErrTooLarge is a request or a field above its limit.
	ErrTooLarge = errors.New("too large")
	// ErrOpen is every failure that depends on a key: unwrapping, commitment,
	// chunks, padding. It is returned as it is, never wrapped, so that whoever
	// sends forged envelopes learns nothing from the difference.
	ErrOpen = errors.New("cannot open")
	// ErrNoKMS is a request by a data key of KMS where KMS is not asked.
	ErrNoKMS = errors.New("sealed by a data key of KMS, which is not asked here")
	// ErrReceipt is a receipt that its recipient has not signed, or not of this.
	ErrReceipt = errors.New("receipt does not hold")
	// ErrCut is a response that ended before its final chunk.
	ErrCut = errors.New("response was cut off")
	// ErrReplayed is a request id that the recipient key has run already.
	ErrReplayed = errors.New("request was run already")
	// ErrReplaySetFull is a [ReplaySet] at its capacity: no request can be taken
	// until one that was recorded expires.
	ErrReplaySetFull = errors.New("replay set is full")
)

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

// readError classes what a read of what gave: an early end is the sender's
// fault, anything else the transport's.
func readError(what string, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return malformed("ends within the %s", what)
	}
	return fmt.Errorf("read %s: %w", what, err)
}
