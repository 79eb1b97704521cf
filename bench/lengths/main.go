// Lengths measures what the sizes of a sealed answer's chunks tell of what was
// answered, to who sees nothing else, and what it costs that they tell little.
//
// Passages of this repository's pages are streamed token by token as an engine
// streams them, and sealed by the protocol's own writer. A classifier that has seen
// other passages' chunk sizes says which page a passage is of, as one would say
// what an answer is about ("Whisper Leak", arXiv 2511.03675). It is run over the
// sizes as they would be without padding, and as they are; and with several events
// sealed together.
package main

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/mrgc/mrgc/bench/result"
	"github.com/mrgc/mrgc/internal/seal"
)

func main() {
	pages := flag.String("pages", "docs/*.md", "pages whose passages are answered")
	flag.Parse()
	if err := run(*pages); err != nil {
		fmt.Fprintln(os.Stderr, "lengths:", err)
		os.Exit(1)
	}
}

// batches are how many events are sealed together.
var batches = []int{1, 2, 4, 8, 16}

func run(pages string) error {
	passages, err := readPassages(pages)
	if err != nil {
		return err
	}
	writer, err := newWriter()
	if err != nil {
		return err
	}
	r := result.Result{Name: "lengths", Title: "What chunk sizes tell of an answer", Command: "make bench-lengths"}
	t := result.Table{
		Title:   "Telling the page of a passage by chunk sizes alone",
		Columns: []string{"events in a chunk", "AUC without padding", "AUC as it is", "bytes that padding adds", "all that sealing adds", "a token waits for others, mean"},
	}
	for _, batch := range batches {
		var open, padded []sample
		var clear, padding, sealed int
		for _, p := range passages {
			chunks := p.chunks(batch)
			sizes, err := writer.seal(chunks)
			if err != nil {
				return err
			}
			var plain []int
			for i, c := range chunks {
				plain = append(plain, len(c)+overhead)
				clear, padding, sealed = clear+len(c), padding+sizes[i]-overhead-len(c), sealed+sizes[i]
			}
			open, padded = append(open, sample{p.page, plain}), append(padded, sample{p.page, sizes})
		}
		without, with := meanAUC(open), meanAUC(padded)
		t.Rows = append(t.Rows, []string{
			fmt.Sprint(batch), fmt.Sprintf("%.2f", without), fmt.Sprintf("%.2f", with),
			fmt.Sprintf("%.0f %%", share(padding, clear)), fmt.Sprintf("%.0f %%", share(sealed-clear, clear)), fmt.Sprintf("%.1f tokens", float64(batch-1)/2),
		})
		if batch == 1 {
			r.Figures = append(r.Figures,
				result.Figure{Name: "AUC of the classifier without padding (0.5: it knows nothing)", Value: without, Unit: "AUC"},
				result.Figure{Name: "AUC of the classifier as answers are padded", Value: with, Unit: "AUC", Goal: "≤ 0.55"},
				result.Figure{Name: "bytes that padding adds to a stream", Value: share(padding, clear), Unit: "%", Goal: "≤ 15"})
		}
	}
	r.Tables = append(r.Tables, t)
	r.Notes = append(r.Notes, fmt.Sprintf("%d passages of %d tokens of %d pages; the AUC is the mean over pages of one against all others, in five folds. The classifier is naive Bayes over "+
		"sizes and pairs of sizes. Tokens are words and pieces of words of at most six letters, not a model's. Every passage has as many tokens: how many chunks there "+
		"are stays visible, and so does when they come. MRGC seals what the engine has said when it is read, one event a chunk when tokens come one by one: the first "+
		"row. Several events together cost less where they fill a bucket, here two of some 230 bytes or eight, and a token then waits for those after it.", len(passages), passageTokens, pageCount(passages)))
	r.Print(os.Stdout)
	return r.Write()
}

func share(part, of int) float64 { return 100 * float64(part) / float64(of) }

// overhead is what a chunk has beside the data: its header, the frame's, and the
// tag (docs/protocol.md).
const overhead = 3 + 3 + 16

// writer seals answers.
type writer struct{ opened *seal.Opened }

func newWriter() (*writer, error) {
	now := time.Now()
	key, err := seal.NewRecipientKey(seal.Claims{Model: "m", Region: "use1", Mode: seal.ModeProcess, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour)})
	if err != nil {
		return nil, err
	}
	sealed, err := seal.Seal(rand.Reader, seal.Request{
		Operation: seal.OpChatCompletions, Model: "m", Tenant: "t", RequestID: seal.RequestID{1}, Expiry: now.Add(time.Minute),
	}, []*seal.Recipient{key.Recipient})
	if err != nil {
		return nil, err
	}
	defer sealed.Wipe()
	wire := bytes.NewReader(sealed.Body)
	prologue, err := seal.ReadPrologue(wire)
	if err != nil {
		return nil, err
	}
	opened, err := key.Open(now, prologue, sealed.Headers, wire, seal.Limits{})
	return &writer{opened}, err
}

// seal gives the size on the wire of each chunk of data.
func (w *writer) seal(chunks [][]byte) (sizes []int, err error) {
	var wire bytes.Buffer
	answer, err := w.opened.Respond(rand.Reader, &wire)
	if err != nil {
		return nil, err
	}
	defer answer.Wipe()
	if err := answer.WriteHead(seal.Head{Status: 200, ContentType: "text/event-stream"}); err != nil {
		return nil, err
	}
	for _, c := range chunks {
		before := wire.Len()
		if _, err := answer.Write(c); err != nil {
			return nil, err
		}
		sizes = append(sizes, wire.Len()-before)
		if length := int(binary.BigEndian.Uint16(wire.Bytes()[before+1:])); before+3+length != wire.Len() {
			return nil, errors.New("what was sealed together is not one chunk")
		}
	}
	return sizes, answer.Close(seal.End{})
}
