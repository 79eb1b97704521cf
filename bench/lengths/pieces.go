package main

import (
	"context"
	"encoding/csv"
	"fmt"
	"math"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/mrgc/mrgc/bench/result"
	"github.com/mrgc/mrgc/enclave"
)

// pieceTokens are the lengths of answers whose bytes are counted.
var pieceTokens = []int{16, 64, 128, 256, 512, 1024}

// wordsOf are the tokens of all passages, one after the other.
func wordsOf(passages []passage) (words []string) {
	for _, p := range passages {
		words = append(words, p.tokens...)
	}
	return words
}

// piecesOf cuts words into answers of so many tokens, so many of them at most.
func piecesOf(words []string, tokens, most int) (all []inOnePiece) {
	for i := 0; (i+1)*tokens <= len(words) && i < most; i++ {
		all = append(all, piece(words[i*tokens:(i+1)*tokens]))
	}
	return all
}

// measurePieces measures all there is of answers that are not streamed.
func measurePieces(ctx context.Context, passages []passage, o options, r *result.Result) error {
	if err := measureLengths(ctx, passages, r); err != nil {
		return err
	}
	if err := measureShort(ctx, passages, r); err != nil {
		return err
	}
	return compareRules(ctx, passages, o.recorded, r)
}

// measureLengths seals answers of several lengths.
func measureLengths(ctx context.Context, passages []passage, r *result.Result) error {
	t := result.Table{
		Title: "Answers in one piece", Columns: []string{"tokens", "answers", "bytes in clear, mean", "bytes that padding adds", "all that sealing adds", "sizes on the wire"},
	}
	words := wordsOf(passages)
	var all tally
	for _, tokens := range pieceTokens {
		engines := map[string]http.RoundTripper{}
		for i, p := range piecesOf(words, tokens, len(passages)) {
			engines[fmt.Sprint(i)] = p
		}
		u, err := newEnclave(ctx, enclave.DefaultAnswerWait, engines)
		if err != nil {
			return err
		}
		var these tally
		sizes := map[int]bool{}
		for name := range engines {
			writes, err := u.ask(name, false)
			if err != nil {
				return err
			}
			sizes[these.addPiece(writes)] = true
		}
		t.Rows = append(t.Rows, []string{
			fmt.Sprint(tokens), fmt.Sprint(len(engines)), fmt.Sprint(these.clear / len(engines)), fmt.Sprintf("%.1f %%", share(these.padding, these.clear)),
			fmt.Sprintf("%.0f %%", share(these.wire-these.clear, these.clear)), fmt.Sprint(len(sizes)),
		})
		all.add(&these)
	}
	r.Figures = append(r.Figures, result.Figure{Name: "bytes that padding adds to answers in one piece, of all lengths together", Value: share(all.padding, all.clear), Unit: "%", Goal: "≤ 15"})
	r.Tables = append(r.Tables, t)
	r.Notes = append(r.Notes, "An answer in one piece has 957 bytes with its padding, or more with four significant bits: a short one costs a larger share. "+
		"What sealing adds besides is mostly the head and the end with its receipt, which a short answer has, too.")
	return nil
}

// addPiece adds an answer that was not streamed, and gives what it has on the wire.
func (t *tally) addPiece(writes []seen) (wire int) {
	for i, w := range writes {
		wire += w.bytes
		if i > 0 && i < len(writes)-1 {
			t.clear, t.padding = t.clear+w.data, t.padding+w.padding()
		}
	}
	t.wire += wire
	return wire
}

// short is an answer that may be so for other reasons than its words.
type short struct {
	what   string
	engine http.RoundTripper // nil: the enclave refuses
}

func shortAnswers(words []string) []short {
	const call = `"content":null,"refusal":null,"annotations":null,"audio":null,"function_call":null,"tool_calls":[{"id":"chatcmpl-tool-8d7f2b1c4e6a4f0f9b3c5d7e9f1a2b3c",` +
		`"type":"function","function":{"name":"get_weather_forecast","arguments":"{\"city\": \"Reykjavik\", \"unit\": \"celsius\", \"days\": 3}"}}],"reasoning":null`
	return []short{
		{"one token", piece(words[:1])},
		{"20 tokens, as of one who declines", piece(words[:20])},
		{"60 tokens", piece(words[:60])},
		{"60 tokens of six letters each", piece(slices.Repeat([]string{" letter"}, 60))},
		{"60 tokens, as llama.cpp writes them", llamaPiece(words[:60])},
		{"a call of a tool", pieceWith(call, "tool_calls", 36, 28)},
		{"the engine's refusal of a request", refusal(`{"error":{"message":"This model's maximum context length is 4096 tokens. However, your request has 5120 input tokens. ` +
			`Please reduce the length of the input messages.","type":"BadRequestError","param":"input_tokens","code":400}}`)},
		{"the enclave's refusal of a request", nil},
	}
}

// measureShort seals short answers of all kinds.
func measureShort(ctx context.Context, passages []passage, r *result.Result) error {
	answers := shortAnswers(wordsOf(passages))
	engines := map[string]http.RoundTripper{}
	for _, a := range answers {
		engines[a.what] = a.engine
	}
	u, err := newEnclave(ctx, enclave.DefaultAnswerWait, engines)
	if err != nil {
		return err
	}
	t := result.Table{Title: "Short answers in one piece", Columns: []string{"", "bytes in clear", "bytes sealed"}}
	sizes := map[int]bool{}
	for _, a := range answers {
		asked := map[string]any{"model": modelName, "messages": []map[string]string{{"role": "user", "content": a.what}}}
		if a.engine == nil {
			asked["adapter"] = "of another tenant"
		}
		writes, _, err := u.send(asked)
		if err != nil {
			return fmt.Errorf("%s: %w", a.what, err)
		}
		var one tally
		wire := one.addPiece(writes)
		sizes[wire] = true
		t.Rows = append(t.Rows, []string{a.what, fmt.Sprint(one.clear), fmt.Sprint(wire)})
	}
	r.Figures = append(r.Figures, result.Figure{Name: "sizes on the wire of short answers, calls of tools and errors", Value: float64(len(sizes)), Unit: "sizes", Goal: "≤ 1"})
	r.Tables = append(r.Tables, t)
	return nil
}

// judgedTokens are the lengths of answers that topics are told apart by: many, so that
// no rule is judged by where its steps happen to be.
var judgedTokens = []int{16, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 896, 1024}

// compared are answers whose sizes are looked at under each rule.
type compared struct {
	byTokens map[int][]int // sizes in clear of the answers whose bytes are counted
	all      []int         // of these together
	recorded []int         // of answers as long as were recorded
	learned  map[int]sizesOf
	judged   map[int]sizesOf
}

// compareRules says of each rule what it costs, and what it tells.
func compareRules(ctx context.Context, passages []passage, recorded string, r *result.Result) error {
	c, err := answersToCompare(ctx, passages, recorded)
	if err != nil {
		return err
	}
	t := result.Table{
		Title: "Answers in one piece under other rules",
		Columns: []string{
			"rule", "bytes added, all lengths", "16 tokens", "64", "256", "1024", "lengths as recorded", "most, above 957 bytes",
			"bits told, all lengths", "lengths as recorded", "AUC, mean", "AUC, largest", fmt.Sprintf("topic named, of %d", len(topics)), "two answers told apart",
		},
	}
	byLength := result.Table{
		Title: "Telling topics apart by the sizes of answers of as many tokens: AUC, mean of all pairs (largest)", Columns: []string{"rule"},
	}
	for _, tokens := range pieceTokens {
		byLength.Columns = append(byLength.Columns, fmt.Sprintf("%d tokens", tokens))
	}
	for _, rule := range rules() {
		all, row := c.judge(rule)
		t.Rows = append(t.Rows, []string{
			rule.name, percent(padded(c.all, rule.room)), percent(padded(c.byTokens[16], rule.room)), percent(padded(c.byTokens[64], rule.room)),
			percent(padded(c.byTokens[256], rule.room)), percent(padded(c.byTokens[1024], rule.room)), percent(padded(c.recorded, rule.room)), percent(mostPadded(rule.room)),
			fmt.Sprintf("%.2f", bitsTold(c.all, rule.room)), fmt.Sprintf("%.2f", bitsTold(c.recorded, rule.room)),
			fmt.Sprintf("%.3f", all.meanAUC), fmt.Sprintf("%.3f", all.maxAUC), percent(all.accuracy), percent(all.differ),
		})
		byLength.Rows = append(byLength.Rows, append([]string{rule.name}, row...))
		switch rule.name {
		case noPadding:
			r.Figures = append(r.Figures, result.Figure{Name: "AUC of the sizes of answers in one piece, without padding, mean", Value: all.meanAUC, Unit: "AUC"})
		case asItIs:
			r.Figures = append(r.Figures,
				result.Figure{Name: "AUC of the sizes of answers in one piece, as seen, mean", Value: all.meanAUC, Unit: "AUC"},
				result.Figure{Name: "AUC of the sizes of answers in one piece, as seen, largest of any pair of topics and length", Value: all.maxAUC, Unit: "AUC"},
				result.Figure{Name: "bits that the size of an answer in one piece tells of its length, all lengths", Value: bitsTold(c.all, rule.room), Unit: "bits"},
				result.Figure{Name: "bits that the size of an answer in one piece tells, lengths as recorded", Value: bitsTold(c.recorded, rule.room), Unit: "bits"},
				result.Figure{Name: "bytes that padding adds to answers in one piece, lengths as recorded", Value: 100 * padded(c.recorded, rule.room), Unit: "%", Goal: "≤ 15"},
				result.Figure{Name: "the most that padding adds to an answer in one piece of more than 957 bytes", Value: 100 * mostPadded(rule.room), Unit: "%", Goal: "≤ 15"})
		}
	}
	r.Tables = append(r.Tables, t, byLength)
	r.Notes = append(r.Notes, fmt.Sprintf("Rules are compared by the same answers: those of the table of answers in one piece, and %d as long as requests of Azure's conversation trace were answered. A rule that is "+
		"named by bits has sizes of so many bytes at least, and of so many significant bits, in whole units. "+
		"Bits told are the entropy of the sizes. Topics are %d packages of Go's standard library (%s), whose comments are answered, all with as many tokens; the mean is over %d numbers of tokens from 16 to 1024. The classifier "+
		"is told the rule and sizes in clear of %d answers of each topic and length, estimates how likely each size is (Gaussian kernels), and judges %d others by the ratio of likelihoods of what is seen. Two answers are of any topic: who knows "+
		"both word for word tells them apart if their sizes differ. Topics whose answers differ in tokens, too, are told apart better by any rule.",
		len(c.recorded), len(topics), strings.Join(topics, ", "), len(judgedTokens), answersOfTopic, answersOfTopic))
	return nil
}

func answersToCompare(ctx context.Context, passages []passage, recorded string) (c *compared, err error) {
	c = &compared{byTokens: map[int][]int{}, learned: map[int]sizesOf{}, judged: map[int]sizesOf{}}
	words := wordsOf(passages)
	for _, tokens := range pieceTokens {
		for _, p := range piecesOf(words, tokens, len(passages)) {
			c.byTokens[tokens] = append(c.byTokens[tokens], len(p))
		}
		c.all = append(c.all, c.byTokens[tokens]...)
	}
	texts, err := readTopics(ctx)
	if err != nil {
		return nil, err
	}
	for _, tokens := range judgedTokens {
		c.learned[tokens], c.judged[tokens] = sizesIn(texts, tokens)
	}
	lengths, err := readLengths(recorded)
	if err != nil {
		return nil, err
	}
	var text []string
	for _, topic := range topics {
		text = append(text, texts[topic]...)
	}
	for at, i := 0, 0; i < len(lengths); i++ {
		if at+lengths[i] > len(text) {
			at = 0
		}
		c.recorded = append(c.recorded, len(piece(text[at:at+lengths[i]])))
		at += lengths[i]
	}
	return c, nil
}

// readLengths gives the tokens that recorded requests were answered with.
func readLengths(path string) (lengths []int, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	lines := csv.NewReader(file)
	lines.Comment = '#'
	rows, err := lines.ReadAll()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for _, row := range rows[1:] {
		tokens, err := strconv.Atoi(row[2])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		lengths = append(lengths, tokens)
	}
	return lengths, nil
}

// judge gives what a rule's sizes tell, in the mean of all lengths, and of the lengths
// whose bytes are counted one by one.
func (c *compared) judge(rule rule) (all told, byLength []string) {
	n := float64(len(judgedTokens))
	for _, tokens := range judgedTokens {
		one := tell(c.learned[tokens], c.judged[tokens], rule.room)
		all.meanAUC, all.maxAUC = all.meanAUC+one.meanAUC/n, math.Max(all.maxAUC, one.maxAUC)
		all.accuracy, all.differ = all.accuracy+one.accuracy/n, all.differ+one.differ/n
		if slices.Contains(pieceTokens, tokens) {
			byLength = append(byLength, fmt.Sprintf("%.2f (%.2f)", one.meanAUC, one.maxAUC))
		}
	}
	return all, byLength
}

// padded is what a rule adds to answers of these sizes, as a share of their bytes.
func padded(sizes []int, room func(n int) int) float64 {
	added, clear := 0, 0
	for _, size := range sizes {
		added, clear = added+room(size)-size, clear+size
	}
	return float64(added) / float64(clear)
}

// mostPadded is the largest share that a rule adds to any answer that is not short.
func mostPadded(room func(n int) int) (most float64) {
	for n := 958; n < 100_000; n++ {
		most = max(most, padded([]int{n}, room))
	}
	return most
}

func percent(share float64) string { return fmt.Sprintf("%.1f %%", 100*share) }
