package seal

import (
	"errors"
	"fmt"
	"io"
)

// ResponseWriter seals an answer. Every call that writes has handed its chunks
// to the underlying writer when it returns; nothing is held back. The calls are
// WriteHead, any number of Write and WriteFrames, then Close or Fail.
// It is not safe for concurrent use.
type ResponseWriter struct {
	w        io.Writer
	chunks   *chunkCipher // nil once the response is over
	prologue []byte       // until it has been written, with the head
	frame    []byte       // plaintext of one chunk, cleared after each
	wire     []byte       // ciphertext of the chunks that are written together
	err      error        // of the underlying writer; sticky
}

// errOver and errNoHead are mistakes of the caller.
var (
	errOver   = errors.New("response is over")
	errNoHead = errors.New("response has no head yet")
)

// Respond starts the answer to an opened request. Nothing is written before
// WriteHead. rand must be cryptographically secure.
func (o *Opened) Respond(rand io.Reader, w io.Writer) (*ResponseWriter, error) {
	if o.dek == nil {
		return nil, errors.New("respond: request has been wiped")
	}
	prologue := make([]byte, responsePrologueSize)
	prologue[0] = version1
	copy(prologue[1:], o.KeyID[:])
	nonce := prologue[responsePrologueSize-responseNonceSize:]
	if _, err := io.ReadFull(rand, nonce); err != nil {
		return nil, fmt.Errorf("respond: draw nonce: %w", err)
	}
	chunks, err := responseKeys(o.dek, o.transcript, o.KeyID, nonce)
	if err != nil {
		return nil, fmt.Errorf("respond: %w", err)
	}
	return &ResponseWriter{w: w, chunks: chunks, prologue: prologue}, nil
}

// WriteHead writes the prologue and the head, in one Write. It comes first,
// once.
func (w *ResponseWriter) WriteHead(h Head) error {
	if w.chunks != nil && w.prologue == nil {
		return errors.New("response has a head already")
	}
	data, err := h.encode()
	if err != nil {
		return err
	}
	return w.writeFrame(frameHead, data)
}

// Write seals p as one chunk, or as several when it is longer than a chunk
// holds (16381 bytes). An empty p writes nothing.
func (w *ResponseWriter) Write(p []byte) (int, error) {
	if err := w.ready(); err != nil {
		return 0, err
	}
	written := 0
	for written < len(p) {
		n := min(len(p)-written, MaxFrameData)
		if err := w.writeFrame(frameData, p[written:written+n]); err != nil {
			return written, err
		}
		written += n
	}
	return written, nil
}

// WriteFrames seals p in frames of its caller's choice, named by how much data each
// holds, as [Frames] does: one chunk for each, all of them in one Write to the
// underlying writer. Those that p does not fill are padded, also one that nothing is
// left for.
func (w *ResponseWriter) WriteFrames(p []byte, frames []int) error {
	if err := w.ready(); err != nil {
		return err
	}
	capacity := 0
	for _, holds := range frames {
		if !isFrameSize(holds + frameHeaderSize) {
			return fmt.Errorf("no frame holds %d bytes", holds)
		}
		capacity += holds
	}
	if len(p) > capacity {
		return fmt.Errorf("%d bytes do not fit into frames for %d", len(p), capacity)
	}
	w.wire = w.wire[:0]
	for _, holds := range frames {
		n := min(len(p), holds)
		w.seal(holds+frameHeaderSize, frameData, p[:n])
		p = p[n:]
	}
	return w.send()
}

// Fail ends a response that cannot be completed with an error in OpenAI's shape,
// at most 16381 bytes of JSON, and wipes the writer. A request that fails before
// anything was answered gets a head with an error status, the JSON as data, and
// Close, like any HTTP response.
func (w *ResponseWriter) Fail(errorJSON []byte) error {
	if err := w.ready(); err != nil {
		return err
	}
	if len(errorJSON) > MaxFrameData {
		return ErrTooLarge
	}
	defer w.Wipe()
	return w.writeFrame(frameError, errorJSON)
}

// Close ends a complete response and wipes the writer. A response that is
// neither closed nor failed reaches the client as [ErrCut].
func (w *ResponseWriter) Close(e End) error {
	if err := w.ready(); err != nil {
		return err
	}
	data, err := e.encode()
	if err != nil {
		return err
	}
	defer w.Wipe()
	return w.writeFrame(frameEnd, data)
}

// Wipe clears what the writer holds and ends it. It may be called at any time,
// more than once.
func (w *ResponseWriter) Wipe() {
	clear(w.frame[:cap(w.frame)])
	w.chunks = nil
}

// ready says whether frames after the head can be written.
func (w *ResponseWriter) ready() error {
	if w.chunks != nil && w.prologue != nil {
		return errNoHead
	}
	return w.writable()
}

func (w *ResponseWriter) writable() error {
	switch {
	case w.err != nil:
		return w.err
	case w.chunks == nil:
		return errOver
	default:
		return nil
	}
}

func (w *ResponseWriter) writeFrame(kind frameKind, data []byte) error {
	if err := w.writable(); err != nil {
		return err
	}
	w.wire = append(w.wire[:0], w.prologue...)
	w.prologue = nil
	w.seal(frameSize(len(data)), kind, data)
	return w.send()
}

// seal appends a chunk to wire.
func (w *ResponseWriter) seal(size int, kind frameKind, data []byte) {
	w.frame = appendFrameOf(w.frame[:0], size, kind, data)
	w.wire = w.chunks.appendChunk(w.wire, w.frame, kind.last())
	clear(w.frame)
}

func (w *ResponseWriter) send() error {
	if len(w.wire) == 0 {
		return nil
	}
	if _, err := w.w.Write(w.wire); err != nil {
		w.err = fmt.Errorf("write response: %w", err)
	}
	return w.err
}
