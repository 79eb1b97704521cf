package main

import (
	"bytes"
	"embed"
	"encoding/csv"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"
)

//go:embed testdata/azure-llm-2023-conv.csv
var recorded embed.FS

// arrival is one request of the recording.
type arrival struct {
	at             time.Duration
	prompt, output int // tokens
}

// readRecording reads the excerpt that the project carries.
func readRecording() ([]arrival, error) {
	content, err := recorded.ReadFile("testdata/azure-llm-2023-conv.csv")
	if err != nil {
		return nil, err
	}
	lines := csv.NewReader(bytes.NewReader(content))
	lines.Comment, lines.FieldsPerRecord = '#', 3
	rows, err := lines.ReadAll()
	if err != nil {
		return nil, fmt.Errorf("recorded arrivals: %w", err)
	}
	var all []arrival
	for _, row := range rows[1:] {
		var n [3]int
		for i, field := range row {
			if n[i], err = strconv.Atoi(field); err != nil {
				return nil, fmt.Errorf("recorded arrivals: %w", err)
			}
		}
		all = append(all, arrival{time.Duration(n[0]) * time.Millisecond, n[1], n[2]})
	}
	return all, nil
}

// shape is what traffic looks like beside its arrivals.
type shape struct {
	rate     float64       // mean requests per second
	duration time.Duration // of arrivals
	// reuse: two of three requests go on with a conversation, and conversations
	// share system prompts. Without it no two requests begin alike.
	reuse bool
}

// The system prompts, together, are more than one engine's cache holds beside
// the conversations.
const (
	systemPrompts      = 24
	systemPromptTokens = 512
	maxContextTokens   = 4096
	maxOutputTokens    = 256
)

// request is one request as a tenant sends it.
type request struct {
	index        int           // in its traffic
	at           time.Duration // since the start of the traffic
	conversation int
	messages     []message
	promptTokens int
	outputTokens int
}

type message struct {
	role, content string
}

// conversation is one that may go on.
type conversation struct {
	id       int
	messages []message
	tokens   int
}

// traffic makes a run's requests: arrivals and lengths from a window of the
// recording that the seed chooses, stretched to the rate; conversations from
// the seed alone. The same seed gives the same traffic, whoever is measured.
func traffic(recording []arrival, s shape, seed uint64) []request {
	random := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // traffic is no secret
	n := min(int(s.rate*s.duration.Seconds()), len(recording)-1)
	from := random.IntN(len(recording) - n)
	window := recording[from : from+n+1]
	stretch := s.duration.Seconds() / (window[n].at - window[0].at).Seconds()

	var live []conversation
	var requests []request
	for i, a := range window[:n] {
		r := request{
			index:        i,
			at:           time.Duration(float64(a.at-window[0].at) * stretch),
			outputTokens: max(1, min(a.output, maxOutputTokens)),
		}
		c := conversation{id: i}
		said := min(a.prompt, maxContextTokens)
		if s.reuse {
			if j := random.IntN(3); j > 0 && len(live) > 0 { // goes on, most likely with a recent one
				k := len(live) - 1 - min(int(random.ExpFloat64()*20), len(live)-1)
				c = live[k]
				live = append(live[:k], live[k+1:]...)
				said = min(a.prompt/4, 256)
			} else {
				c.say("system", words(uint64(random.IntN(systemPrompts)), systemPromptTokens), systemPromptTokens)
				said = max(a.prompt-systemPromptTokens, 0)
			}
			said = min(said, maxContextTokens-c.tokens)
		}
		said = max(said, 16)
		c.say("user", words(random.Uint64(), said), said)
		r.conversation, r.messages, r.promptTokens = c.id, c.messages, c.tokens
		requests = append(requests, r)
		c.say("assistant", words(random.Uint64(), r.outputTokens), r.outputTokens)
		if s.reuse && c.tokens < maxContextTokens-maxOutputTokens {
			live = append(live, c)
		}
	}
	return requests
}

// say adds a message without touching what other requests of the conversation
// were made of.
func (c *conversation) say(role, content string, tokens int) {
	c.messages = append(c.messages[:len(c.messages):len(c.messages)], message{role, content})
	c.tokens += tokens
}

// words is text of so many tokens, at four bytes each, which the seed decides.
func words(seed uint64, tokens int) string {
	const letters = "abcdefghijklmnopqrstuvwxyz"
	random := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // text is no secret
	var b strings.Builder
	b.Grow(4 * tokens)
	for range tokens {
		v := random.Uint32()
		b.WriteByte(letters[v%26])
		b.WriteByte(letters[(v>>8)%26])
		b.WriteByte(letters[(v>>16)%26])
		b.WriteByte(' ')
	}
	return b.String()
}
