package seal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
)

// ResponseError is an answer that the enclave broke off because it could not
// complete it. What was read before stands, but is not the whole answer.
type ResponseError struct {
	Body []byte // JSON in the shape of OpenAI's errors, as the enclave sent it
}

// Error does not repeat the body, which may quote content.
func (e *ResponseError) Error() string { return "the answer failed midway" }

// ResponseReader opens an answer as it is read. Read gives the data of verified
// chunks only, as soon as each is complete, and gives io.EOF only when the final
// chunk has verified and the stream has ended right after it.
//
// Every other end is an error, the same on each further call: [ErrCut] for a
// stream that ends or fails early (the transport's error wrapped too),
// [ErrMalformed] and [ErrOpen] for one that was tampered with, *[ResponseError]
// for one that the enclave gave up on. It is not safe for concurrent use.
type ResponseReader struct {
	r          io.Reader
	dek        []byte // nil once the keys are derived
	transcript transcript
	keyIDs     []KeyID

	keyID  KeyID
	chunks *chunkCipher
	buf    []byte // one chunk
	data   []byte // of buf, not read yet
	head   *Head
	end    *End
	err    error // sticky
}

// Head gives the head. It blocks until the first chunk has come.
func (r *ResponseReader) Head() (Head, error) {
	if r.head == nil && r.err == nil {
		r.advance()
	}
	if r.head == nil {
		return Head{}, r.err
	}
	return *r.head, nil
}

// KeyID is the recipient that answers; it is known once Head has succeeded.
func (r *ResponseReader) KeyID() KeyID { return r.keyID }

// End gives the end of a complete response; an error before Read has given
// io.EOF.
func (r *ResponseReader) End() (End, error) {
	switch {
	case r.end != nil:
		return *r.end, nil
	case r.err != nil:
		return End{}, r.err
	default:
		return End{}, errors.New("response has not been read to its end")
	}
}

// Read gives the next of the data.
func (r *ResponseReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(r.data) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		r.advance()
	}
	n := copy(p, r.data)
	r.data = r.data[n:]
	return n, nil
}

// advance takes one chunk in. At the response's end, whichever it is, it clears
// what the reader holds.
func (r *ResponseReader) advance() {
	if r.err = r.step(); r.err != nil {
		clear(r.buf)
		clear(r.dek)
		r.chunks, r.data = nil, nil
	}
}

func (r *ResponseReader) step() error {
	if r.chunks == nil {
		if err := r.readPrologue(); err != nil {
			return err
		}
	}
	kind, data, err := r.readFrame()
	if err != nil {
		return err
	}
	if (kind == frameHead) != (r.head == nil) {
		return malformed("response does not have one head, at its start")
	}
	switch kind {
	case frameHead:
		head, err := parseHead(data)
		if err != nil {
			return err
		}
		r.head = &head
	case frameData:
		r.data = data
	case frameEnd:
		return r.finish(data)
	case frameError:
		return &ResponseError{Body: bytes.Clone(data)}
	default:
		return malformed("response frame of kind %d", kind)
	}
	return nil
}

// finish gives io.EOF if the response ends as it should.
func (r *ResponseReader) finish(data []byte) error {
	end, err := parseEnd(data)
	if err != nil {
		return err
	}
	var extra [1]byte
	switch _, err := io.ReadFull(r.r, extra[:]); err {
	case io.EOF: // itself: an error that wraps it is a transport's, and no end
		r.end = &end
		return io.EOF
	case nil:
		return malformed("data after the response's final chunk")
	default:
		return cut(err)
	}
}

func (r *ResponseReader) readPrologue() error {
	var prologue [responsePrologueSize]byte
	if _, err := io.ReadFull(r.r, prologue[:]); err != nil {
		return cut(err)
	}
	if prologue[0] != version1 {
		return malformed("response has version %d", prologue[0])
	}
	id := KeyID(prologue[1:])
	if !slices.Contains(r.keyIDs, id) {
		return malformed("response is by %s, which is no recipient", id)
	}
	nonce := prologue[responsePrologueSize-responseNonceSize:]
	chunks, err := responseKeys(r.dek, r.transcript, id, nonce)
	if err != nil {
		return err
	}
	clear(r.dek)
	r.dek, r.keyID, r.chunks = nil, id, chunks
	return nil
}

// readFrame reads and opens one chunk into buf.
func (r *ResponseReader) readFrame() (frameKind, []byte, error) {
	var header [chunkHeaderSize]byte
	if _, err := io.ReadFull(r.r, header[:]); err != nil {
		return 0, nil, cut(err)
	}
	final, length, err := parseChunkHeader(header)
	if err != nil {
		return 0, nil, err
	}
	if !isFrameSize(length - tagSize) {
		return 0, nil, malformed("response chunk has %d bytes", length)
	}
	if r.buf == nil { // full size at once: growing would leave plaintext behind
		r.buf = make([]byte, maxChunkPlaintext+tagSize)
	}
	ciphertext := r.buf[:length]
	if _, err := io.ReadFull(r.r, ciphertext); err != nil {
		return 0, nil, cut(err)
	}
	plaintext, err := r.chunks.open(ciphertext, final)
	if err != nil {
		return 0, nil, err
	}
	kind, data, err := parseFrame(plaintext)
	if err != nil {
		return 0, nil, err
	}
	if kind.last() != final {
		return 0, nil, malformed("response frame of kind %d, final %t", kind, final)
	}
	return kind, data, nil
}

// cut classes what the transport gave in place of the rest of a response.
func cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return ErrCut
	}
	return fmt.Errorf("%w: %w", ErrCut, err)
}
