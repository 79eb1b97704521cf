package nsm

import (
	"encoding/binary"
	"fmt"
	"io"
)

// WriteFrame writes a message to a stream: its length as 4 bytes, big-endian,
// then the message, in one Write.
func WriteFrame(w io.Writer, message []byte) error {
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(message)), uint32(len(message)))
	if _, err := w.Write(append(frame, message...)); err != nil {
		return fmt.Errorf("write message: %w", err)
	}
	return nil
}

// ReadFrame reads a message that [WriteFrame] wrote, of at most limit bytes. It
// allocates nothing before the length is checked.
func ReadFrame(r io.Reader, limit int) ([]byte, error) {
	var header [4]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return nil, fmt.Errorf("read message length: %w", err)
	}
	n := binary.BigEndian.Uint32(header[:])
	if int64(n) > int64(limit) {
		return nil, fmt.Errorf("message of %d bytes, at most %d", n, limit)
	}
	message := make([]byte, n)
	if _, err := io.ReadFull(r, message); err != nil {
		return nil, fmt.Errorf("read message: %w", err)
	}
	return message, nil
}
