package seal

import (
	"encoding/binary"
	"math/bits"
	"slices"
	"time"

	"github.com/fxamacker/cbor/v2"
)

// frameKind is what a chunk of a response carries.
type frameKind uint8

// A response is one head, any number of data, then one end or one error. The
// last, and no other, is the final chunk.
const (
	frameHead  frameKind = 1
	frameData  frameKind = 2
	frameEnd   frameKind = 3
	frameError frameKind = 4
)

func (k frameKind) last() bool { return k == frameEnd || k == frameError }

const (
	frameHeaderSize = 1 + 2 // kind, data length

	responseNonceSize    = 32
	responsePrologueSize = 1 + 8 + responseNonceSize
)

// frameSize is the smallest bucket for a frame with n bytes of data. Buckets
// hide the lengths of tokens, from which the subject of an answer can be told
// ("Whisper Leak", arXiv 2511.03675).
func frameSize(n int) int {
	for _, size := range frameSizes() {
		if frameHeaderSize+n <= size {
			return size
		}
	}
	return maxChunkPlaintext
}

func frameSizes() [4]int { return [4]int{minFrameSize, 2048, 8192, maxChunkPlaintext} }

const minFrameSize = 512

// How much data the smallest and the largest frame hold.
const (
	MinFrameData = minFrameSize - frameHeaderSize
	MaxFrameData = maxChunkPlaintext - frameHeaderSize
)

// Frames says which frames the last n bytes of an answer go into, named by how much
// each holds, when it has filled so many of the largest before. In units of the
// smallest frame the whole answer's size has at most five significant bits: how many
// frames there are tells its length to 6 %, or to a frame. What is padded is that at
// most.
func Frames(full, n int) (frames []int) {
	units := func(size int) int { return size / minFrameSize }
	total := full*units(maxChunkPlaintext) + (n+MinFrameData-1)/MinFrameData
	step := 1 << max(0, bits.Len(uint(total))-5)
	left := (total+step-1)/step*step - full*units(maxChunkPlaintext)
	sizes := frameSizes()
	for _, size := range slices.Backward(sizes[:]) {
		for ; left >= units(size); left -= units(size) {
			frames = append(frames, size-frameHeaderSize)
		}
	}
	return frames
}

// FrameStep is what the size of every frame is a multiple of.
const FrameStep = 64

// isFrameSize is what a reader asks: it takes more sizes than any writer uses, so that
// rules of padding can change without it.
func isFrameSize(n int) bool {
	return minFrameSize <= n && n <= maxChunkPlaintext && n%FrameStep == 0
}

const (
	// minPieceSize is what an answer in one piece takes at least. It holds what engines
	// write around an answer, and some hundred tokens.
	minPieceSize = 960
	// pieceBits is how many significant bits the size of a longer one has.
	pieceBits = 4
)

// PieceFrames is [Frames] for an answer in one piece whose reader takes frames of every
// multiple of [FrameStep]. All frames together have 960 bytes, or more with four
// significant bits (1024, 1152, 1280, …): above 957 bytes of data at most an eighth is
// added, and what has less, an error or nothing at all, is of one size. An answer fills
// the largest frames, and one for the rest.
func PieceFrames(full, n int) (frames []int) {
	framed := full*maxChunkPlaintext + n + frameHeaderSize*((n+MaxFrameData-1)/MaxFrameData)
	step := 1 << max(0, bits.Len(uint(framed))-pieceBits)
	size := max(minPieceSize, (framed+step-1)/step*step)
	for left := size - full*maxChunkPlaintext; left > 0; left -= maxChunkPlaintext {
		frames = append(frames, min(left, maxChunkPlaintext)-frameHeaderSize)
	}
	return frames
}

// appendFrame appends a frame with at most MaxFrameData bytes of data, padded to
// the smallest size that holds them.
func appendFrame(dst []byte, kind frameKind, data []byte) []byte {
	return appendFrameOf(dst, frameSize(len(data)), kind, data)
}

// appendFrameOf appends a frame of that size.
func appendFrameOf(dst []byte, size int, kind frameKind, data []byte) []byte {
	start := len(dst)
	dst = slices.Grow(dst, size)
	dst = append(dst, byte(kind))
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(data)))
	dst = append(dst, data...)
	padding := dst[len(dst) : start+size]
	clear(padding)
	return dst[:start+size]
}

// parseFrame reads a frame, whose data shares b's memory.
func parseFrame(b []byte) (frameKind, []byte, error) {
	c := cursor{rest: b}
	kind := frameKind(c.uint8())
	data := c.take(int(c.uint16()))
	if c.short || !allZero(c.rest) {
		return 0, nil, malformed("response frame")
	}
	return kind, data, nil
}

// Head is what a response starts with, in place of HTTP's status line.
type Head struct {
	Status      int           // HTTP status, 200 to 599
	ContentType string        // media type of the data; may be empty
	RetryAfter  time.Duration // travels in whole seconds, rounded up; 0: not said
}

// headMap is Head's wire form.
type headMap struct {
	Status      uint16 `cbor:"1,keyasint"`
	ContentType string `cbor:"2,keyasint"`
	RetryAfter  uint32 `cbor:"3,keyasint,omitempty"` // seconds
}

func (m *headMap) check() error {
	if m.Status < 200 || m.Status > 599 {
		return malformed("response status %d", m.Status)
	}
	if len(m.ContentType) > maxNameBytes {
		return malformed("content type has %d bytes, more than %d", len(m.ContentType), maxNameBytes)
	}
	for i := range len(m.ContentType) { // it becomes a header's value at the client
		if m.ContentType[i] < ' ' || m.ContentType[i] > '~' {
			return malformed("content type is not printable ASCII")
		}
	}
	return nil
}

// maxRetryAfter keeps a Head within what its wire form can carry.
const maxRetryAfter = 24 * time.Hour

func (h Head) encode() ([]byte, error) {
	if h.Status < 0 || h.Status > 0xffff {
		return nil, malformed("response status %d", h.Status)
	}
	if h.RetryAfter < 0 || h.RetryAfter > maxRetryAfter {
		return nil, malformed("retry after %s, not 0 to %s", h.RetryAfter, maxRetryAfter)
	}
	m := headMap{
		Status:      uint16(h.Status),
		ContentType: h.ContentType,
		RetryAfter:  uint32((h.RetryAfter + time.Second - 1) / time.Second),
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	return encodeCBOR(m)
}

// parseHead ignores keys that it does not know, so that later versions can add
// some: whoever wrote them holds the response's key.
func parseHead(data []byte) (Head, error) {
	var m headMap
	if err := decodeCBOR(data, &m, cbor.ExtraDecErrorNone); err != nil {
		return Head{}, malformed("response head: %v", err)
	}
	if err := m.check(); err != nil {
		return Head{}, err
	}
	return Head{
		Status:      int(m.Status),
		ContentType: m.ContentType,
		RetryAfter:  time.Duration(m.RetryAfter) * time.Second,
	}, nil
}

// End is what a complete response ends with.
type End struct {
	PromptTokens int
	OutputTokens int
	Receipt      []byte // signed ([Receipt.Sign]), at most 8192 bytes; nil: none
}

// endMap is End's wire form.
type endMap struct {
	PromptTokens uint32 `cbor:"1,keyasint"`
	OutputTokens uint32 `cbor:"2,keyasint"`
	Receipt      []byte `cbor:"3,keyasint,omitempty"`
}

const (
	maxReceiptBytes = 8192
	maxTokens       = 1<<31 - 1
)

func (e End) encode() ([]byte, error) {
	if e.PromptTokens < 0 || e.PromptTokens > maxTokens || e.OutputTokens < 0 || e.OutputTokens > maxTokens {
		return nil, malformed("token counts %d and %d", e.PromptTokens, e.OutputTokens)
	}
	if len(e.Receipt) > maxReceiptBytes {
		return nil, ErrTooLarge
	}
	return encodeCBOR(endMap{
		PromptTokens: uint32(e.PromptTokens),
		OutputTokens: uint32(e.OutputTokens),
		Receipt:      e.Receipt,
	})
}

// parseEnd ignores keys that it does not know, as parseHead does.
func parseEnd(data []byte) (End, error) {
	var m endMap
	if err := decodeCBOR(data, &m, cbor.ExtraDecErrorNone); err != nil {
		return End{}, malformed("response end: %v", err)
	}
	if m.PromptTokens > maxTokens || m.OutputTokens > maxTokens || len(m.Receipt) > maxReceiptBytes {
		return End{}, malformed("response end is out of range")
	}
	return End{PromptTokens: int(m.PromptTokens), OutputTokens: int(m.OutputTokens), Receipt: m.Receipt}, nil
}
