package enclave

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"time"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/seal"
	"github.com/mrgc/mrgc/internal/size"
)

// doneMarker ends every complete stream of server-sent events in OpenAI's API.
// Without it the engine has stopped midway, however orderly its connection ended.
const doneMarker = "data: [DONE]"

// errStopped says that the engine's answer is not whole.
func errStopped() *api.Error {
	return api.Errorf(http.StatusBadGateway, "engine_stopped", "the engine stopped before its answer was complete")
}

// copyAnswer seals what the engine says, and gives the buckets of what that has
// used, and whether it is whole. It closes engine.
func copyAnswer(answer *reply, engine io.ReadCloser, request engineRequest, wait time.Duration) (used size.Buckets, whole bool, err error) {
	m := newMeter(request)
	defer m.wipe()
	defer engine.Close()
	var ended error
	if request.stream {
		ended, err = copyStream(answer, engine, request, m, wait)
	} else {
		ended, err = copyPiece(answer, engine, m)
	}
	switch {
	case err != nil:
		return size.Buckets{}, true, err // it is not the engine that has gone
	case ended == io.EOF && (!request.stream || m.endsWith(doneMarker)): //nolint:errorlint // itself: an error that wraps it is a cut
		end, used := m.used()
		return used, true, answer.Close(end)
	default:
		_, used := m.used()
		return used, false, answer.Fail(errStopped().Body())
	}
}

// copyPiece seals an answer that nobody can use before it is whole, in frames that
// tell little of its length. ended is how the engine's side ended, err what became of
// the other.
func copyPiece(answer *reply, engine io.Reader, m *meter) (ended, err error) {
	buffer := make([]byte, seal.MaxFrameData)
	defer clear(buffer)
	for full, held := 0, 0; ; {
		n, ended := engine.Read(buffer[held:])
		m.add(buffer[held : held+n])
		held += n
		switch {
		case ended != nil:
			answer.Ends()
			return ended, answer.WritePiece(full, buffer[:held])
		case held == len(buffer):
			if err := answer.WriteFrames(buffer, []int{held}); err != nil {
				return nil, err
			}
			full, held = full+1, 0
		}
	}
}

// copyStream seals events when [pace] says so. It looks at whole ones only: whether
// one is that which only the enclave asked for cannot be told earlier.
func copyStream(answer *reply, engine io.ReadCloser, request engineRequest, m *meter, wait time.Duration) (ended, err error) {
	from := startFeed(engine)
	defer from.stop()
	buffer := make([]byte, 2*pieceBytes)
	defer clear(buffer)
	p := pace{wait: wait}
	waited := time.NewTimer(0)
	defer waited.Stop()
	for ready, held := 0, 0; ; { // bytes of whole events, and with what follows them
		select {
		case <-waited.C:
		case piece := <-from.pieces:
			ended = piece.err
			m.add(piece.bytes)
			held += copy(buffer[held:], piece.bytes)
			from.taken <- struct{}{}
			now := time.Now()
			came := func(bytes int) { p.came(bytes, now) }
			events, taken := wholeEvents(buffer[ready:held], request.usageAsked, came)
			held = ready + events + copy(buffer[ready+events:], buffer[ready+taken:held])
			ready += events
			if begun := held - ready; begun > 0 && (ended != nil || begun > pieceBytes) { // the end, or an event too long to wait for
				came(begun)
				ready = held
			}
		}
		frames := p.release(time.Now())
		if ended != nil || held-min(ready, capacity(frames)) > pieceBytes { // the next piece would have no room
			frames = append(frames, p.all()...)
		}
		n := min(ready, capacity(frames))
		if ended != nil {
			answer.Ends()
		}
		if err := answer.WriteFrames(buffer[:n], frames); err != nil || ended != nil {
			return ended, err
		}
		ready, held = ready-n, copy(buffer, buffer[n:held])
		if due, waits := p.due(); waits {
			waited.Reset(time.Until(due))
		}
	}
}

// wholeEvents takes the events in b that are complete, and gives how many bytes they
// have, and how much of b they took: without usage it leaves out the event that
// reports it. They are moved together in b's own memory, unchanged, and each one's
// size is told.
func wholeEvents(b []byte, withoutUsage bool, came func(bytes int)) (events, taken int) {
	for end := eventEnd(b); end > 0; end = eventEnd(b[taken:]) {
		event := b[taken : taken+end]
		taken += end
		if !withoutUsage || !isUsage(event) {
			events += copy(b[events:], event)
			came(end)
		}
	}
	return events, taken
}

// eventEnd is where the first event in b ends, after its empty line (WHATWG
// HTML, section 9.2.5); 0 when none does.
func eventEnd(b []byte) int {
	for at := 0; ; {
		length := bytes.IndexByte(b[at:], '\n')
		if length < 0 {
			return 0
		}
		line := bytes.TrimSuffix(b[at:at+length], []byte("\r"))
		at += length + 1
		if len(line) == 0 {
			return at
		}
	}
}

// isUsage says whether an event is the one of stream_options.include_usage: it
// reports usage and has an empty list of choices.
func isUsage(event []byte) bool {
	data, ok := bytes.CutPrefix(event, []byte("data:"))
	if !ok || !bytes.Contains(data, []byte(usageName)) { // most events are not parsed
		return false
	}
	var chunk struct {
		Choices []json.RawMessage          `json:"choices"`
		Usage   map[string]json.RawMessage `json:"usage"`
	}
	return json.Unmarshal(data, &chunk) == nil && chunk.Usage != nil && chunk.Choices != nil && len(chunk.Choices) == 0
}

// usageName is the member in which an engine reports what an answer has used.
// Inside of a string its quotes would be escaped.
const usageName = `"usage"`

// meterKeeps is how much of an answer's end is searched for usage: in vLLM's and
// llama.cpp's answers little or nothing follows it.
const meterKeeps = 4096

// meter finds out what an answer has used.
type meter struct {
	request engineRequest
	bytes   int
	lines   int
	last    []byte // the end of the answer, at most meterKeeps
}

func newMeter(request engineRequest) *meter {
	return &meter{request: request, last: make([]byte, 0, 2*meterKeeps)} // never grows: that would leave text behind
}

func (m *meter) add(p []byte) {
	m.bytes += len(p)
	m.lines += bytes.Count(p, []byte("\n"))
	m.last = append(m.last, p[max(0, len(p)-meterKeeps):]...)
	if extra := len(m.last) - meterKeeps; extra > 0 {
		m.last = append(m.last[:0], m.last[extra:]...)
	}
}

func (m *meter) wipe() { clear(m.last[:cap(m.last)]) }

// endsWith looks at the answer's end, line ends aside.
func (m *meter) endsWith(marker string) bool {
	return bytes.HasSuffix(bytes.TrimRight(m.last, "\r\n"), []byte(marker))
}

// used gives the exact figures, when the engine has reported them, for the
// tenant, and buckets for everyone else. Buckets of what was not reported are
// estimated: the prompt's as it was declared, and for the answer one token for
// each event, which has two lines, or for every 4 bytes.
func (m *meter) used() (seal.End, size.Buckets) {
	if end, ok := m.reported(); ok {
		return end, size.Round(end.PromptTokens, end.OutputTokens)
	}
	output := m.bytes / 4
	if m.request.stream {
		output = m.lines / 2
	}
	return seal.End{}, size.Round(m.request.size.Prompt, output)
}

// reported is the last usage that the engine has reported.
func (m *meter) reported() (end seal.End, ok bool) {
	for rest := m.last; ; {
		at := bytes.LastIndex(rest, []byte(usageName))
		if at < 0 {
			return seal.End{}, false
		}
		rest = rest[:at]
		value, named := bytes.CutPrefix(bytes.TrimLeft(m.last[at+len(usageName):], " \t\r\n"), []byte(":"))
		var usage struct {
			Prompt *int32 `json:"prompt_tokens"`
			Output *int32 `json:"completion_tokens"`
		}
		if !named || json.NewDecoder(bytes.NewReader(value)).Decode(&usage) != nil || usage.Prompt == nil || usage.Output == nil {
			continue
		}
		if *usage.Prompt < 0 || *usage.Output < 0 {
			continue
		}
		return seal.End{PromptTokens: int(*usage.Prompt), OutputTokens: int(*usage.Output)}, true
	}
}
