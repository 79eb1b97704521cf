// Lengths measures what the sizes and times of a sealed answer's chunks tell of what
// was answered, to who sees nothing else, and what it costs that they tell little.
//
// Passages of this repository's pages are streamed token by token, in the events of
// real engines and at their rates, to the enclave's service itself, which seals them.
// A classifier that has seen what other passages look like on the wire says which page
// a passage is of, as one would say what an answer is about ("Whisper Leak", arXiv
// 2511.03675). It is run over the events as they would be seen without padding, over
// what is seen of an enclave that seals each event at once, and of one as it is.
//
// Of answers in one piece there is one size to see. What that tells is compared under
// the enclave's rule of padding and under others, beside what each costs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/mrgc/mrgc/bench/result"
	"github.com/mrgc/mrgc/enclave"
)

func main() {
	var o options
	flag.StringVar(&o.pages, "pages", "docs/*.md", "pages whose passages are answered")
	flag.StringVar(&o.recorded, "recorded", "bench/routing/testdata/azure-llm-2023-conv.csv", "requests whose answers' lengths are taken")
	flag.StringVar(&o.only, "only", "", "streams or pieces: measure that alone; pieces do not depend on what else the machine does")
	flag.Parse()
	if err := run(context.Background(), o); err != nil {
		fmt.Fprintln(os.Stderr, "lengths:", err)
		os.Exit(1)
	}
}

// options say what is measured, and of which answers.
type options struct{ pages, recorded, only string }

// rates are tokens a second of one stream: a large model's, and a small one's.
var rates = []float64{10, 20, 40, 60}

func run(ctx context.Context, o options) error {
	passages, err := readPassages(o.pages)
	if err != nil {
		return err
	}
	measured := false
	for _, m := range []struct {
		what, name, title string
		measure           func(ctx context.Context, passages []passage, o options, r *result.Result) error
	}{
		{"streams", "lengths", "What a streamed answer's chunks tell of it", measureStreams},
		{"pieces", "lengths-pieces", "What the size of an answer in one piece tells of it", measurePieces},
	} {
		if o.only != "" && o.only != m.what {
			continue
		}
		measured = true
		r := result.Result{Name: m.name, Title: m.title, Command: "make bench-lengths"}
		if err := m.measure(ctx, passages, o, &r); err != nil {
			return err
		}
		r.Print(os.Stdout)
		if err := r.Write(); err != nil {
			return err
		}
	}
	if !measured {
		return fmt.Errorf("-only %s: want streams or pieces", o.only)
	}
	return nil
}

// tally is what is known of many answers.
type tally struct {
	bare, marked         []sample // without padding, and as seen
	clear, padding, wire int      // bytes
	waits, firsts        []float64
	writes, answers      int
}

func (t *tally) add(o *tally) {
	t.clear, t.padding, t.wire = t.clear+o.clear, t.padding+o.padding, t.wire+o.wire
	t.waits, t.firsts = append(t.waits, o.waits...), append(t.firsts, o.firsts...)
	t.writes, t.answers = t.writes+o.writes, t.answers+o.answers
}

func share(part, of int) float64 { return 100 * float64(part) / float64(of) }

// measureStreams has every passage streamed in each engine's events at each rate, at
// once and as it is, both at the same time.
func measureStreams(ctx context.Context, passages []passage, _ options, r *result.Result) error {
	t := result.Table{
		Title: "Streams of 200 tokens: telling the page of a passage, and what that it cannot be told costs",
		Columns: []string{
			"events of", "tokens a second", "events are sealed", "AUC without padding", "AUC as seen", "bytes that padding adds", "all that sealing adds",
			"writes for a token", "first token waits, p99", "a token waits, mean", "p99",
		},
	}
	var all [2]tally
	var bare, seen [2][]float64
	for i := range formats {
		for _, rate := range rates {
			var sides [2]tally
			var failed [2]error
			var both sync.WaitGroup
			for side, wait := range []time.Duration{0, enclave.DefaultAnswerWait} {
				both.Go(func() { failed[side] = sides[side].stream(ctx, passages, &formats[i], rate, wait) })
			}
			both.Wait()
			if err := errors.Join(failed[:]...); err != nil {
				return err
			}
			for side, name := range []string{"each at once", "as it is"} {
				s := &sides[side]
				without, with := meanAUC(s.bare), meanAUC(s.marked)
				bare[side], seen[side] = append(bare[side], without), append(seen[side], with)
				waits, firsts := s.waits, s.firsts
				t.Rows = append(t.Rows, []string{
					formats[i].name, fmt.Sprint(rate), name, fmt.Sprintf("%.2f", without), fmt.Sprintf("%.2f", with),
					fmt.Sprintf("%.1f %%", share(s.padding, s.clear)), fmt.Sprintf("%.0f %%", share(s.wire-s.clear, s.clear)), fmt.Sprintf("%.2f", float64(s.writes)/float64(s.answers*passageTokens)),
					fmt.Sprintf("%.1f ms", result.Quantile(firsts, 0.99)), fmt.Sprintf("%.1f ms", mean(waits)), fmt.Sprintf("%.0f ms", result.Quantile(waits, 0.99)),
				})
				all[side].add(s)
			}
		}
	}
	const asIs = 1
	r.Figures = append(r.Figures,
		result.Figure{Name: "AUC of the classifier without padding (0.5: it knows nothing)", Value: mean(bare[asIs]), Unit: "AUC"},
		result.Figure{Name: "AUC of the classifier on what is seen, mean of all kinds of streams", Value: mean(seen[asIs]), Unit: "AUC", Goal: "≤ 0.55"},
		result.Figure{Name: "bytes that padding adds to streams", Value: share(all[asIs].padding, all[asIs].clear), Unit: "%", Goal: "≤ 15"},
		result.Figure{Name: "bytes that it would add if each event were sealed at once", Value: share(all[0].padding, all[0].clear), Unit: "%"},
		result.Figure{Name: "first token waits in the enclave, p99", Value: result.Quantile(all[asIs].firsts, 0.99), Unit: "ms"},
		result.Figure{Name: "first token waits there if each event is sealed at once, p99", Value: result.Quantile(all[0].firsts, 0.99), Unit: "ms"},
		result.Figure{Name: "a token waits for others, mean", Value: mean(all[asIs].waits), Unit: "ms"},
		result.Figure{Name: "a token waits for others, p99", Value: result.Quantile(all[asIs].waits, 0.99), Unit: "ms"})
	r.Tables = append(r.Tables, t)
	r.Notes = append(r.Notes, fmt.Sprintf("%d passages of %d tokens of %d pages, each streamed %d times to the enclave's HTTP service, in process, in the events of an engine: vLLM's have some 230 "+
		"bytes, llama.cpp's, with a path for a model's name, some 320. The time from token to token has a log-normal spread of %.0f %%, and does not depend on what is said. "+
		"The AUC is the mean over pages of one against all others, in five folds. The classifier is naive Bayes over writes (size, and time since the one before in halves of the time between tokens), pairs of "+
		"writes, and how many there are; without padding over the events' sizes and the same times. Tokens are words and pieces of words of at most six letters, not a model's. Every passage has as many tokens: how many "+
		"tokens there are can be told from the chunks. A token waits from when the engine has written it until the enclave has written the chunk with its last byte.",
		len(passages), passageTokens, pageCount(passages), repeats, 100*jitter))
	return nil
}

func mean(of []float64) float64 {
	sum := 0.0
	for _, v := range of {
		sum += v
	}
	return sum / float64(len(of))
}

// repeats is how often each passage is streamed, in times of its own.
const repeats = 3

// stream streams all passages at the same time.
func (t *tally) stream(ctx context.Context, passages []passage, f *format, rate float64, wait time.Duration) error {
	engines := map[string]http.RoundTripper{}
	streams := make([]*engine, repeats*len(passages))
	for i := range streams {
		streams[i] = &engine{says: f.stream(passages[i/repeats].tokens), perSecond: rate, random: rand.New(rand.NewPCG(uint64(i), 1))} //nolint:gosec // simulated
		engines[fmt.Sprint(i)] = streams[i]
	}
	u, err := newEnclave(ctx, wait, engines)
	if err != nil {
		return err
	}
	writes := make([][]seen, len(streams))
	failed := make([]error, len(streams))
	var streaming sync.WaitGroup
	for i := range streams {
		// In no order, so that what else the machine does says nothing of what is answered.
		begins := time.After(rand.N(time.Duration(60 / rate * float64(time.Second)))) //nolint:gosec // no secret
		streaming.Go(func() {
			<-begins
			writes[i], failed[i] = u.ask(fmt.Sprint(i), true)
		})
	}
	streaming.Wait()
	if err := errors.Join(failed...); err != nil {
		return err
	}
	for i, e := range streams {
		of := i / repeats
		t.take(sample{page: passages[of].page, of: of}, f, e, writes[i])
	}
	return nil
}

// take adds what was seen of one stream. The first write has the head, which waits
// for the second, and the last the end with the receipt.
func (t *tally) take(as sample, f *format, e *engine, writes []seen) {
	bare, marked := as, as
	interval := time.Duration(float64(time.Second) / e.perSecond)
	said, had, at := 0, 0, 1
	for i, s := range e.says {
		size := len(s.text)
		if i == len(e.says)-1 {
			size -= len(event(f.after))
		}
		said += size
		for ; had+writes[at].data < said; at++ {
			had += writes[at].data
		}
		wait := writes[at].at.Sub(s.at)
		t.waits = append(t.waits, float64(wait)/float64(time.Millisecond))
		if i == 0 {
			t.firsts = append(t.firsts, t.waits[len(t.waits)-1])
		}
		bare.marks = append(bare.marks, mark(len(s.text), e.says[max(i-1, 0)].at, s.at, interval))
	}
	for i, w := range writes {
		t.wire += w.bytes
		if i == 0 || i == len(writes)-1 {
			continue
		}
		marked.marks = append(marked.marks, mark(w.bytes, writes[max(i-1, 1)].at, w.at, interval))
		t.padding += w.padding()
	}
	t.clear += said
	t.writes, t.answers = t.writes+len(writes)-2, t.answers+1
	t.bare, t.marked = append(t.bare, bare), append(t.marked, marked)
}

// mark stands for a size and the time since the one before.
func mark(bytes int, before, at time.Time, interval time.Duration) int {
	const longest = 63
	gap := min(int(math.Round(2*float64(at.Sub(before))/float64(interval))), longest)
	return bytes*(longest+1) + gap
}

// overhead is what a chunk has beside the data: its header, the frame's, and the
// tag (docs/protocol.md).
const overhead = 3 + frameHead + 16
