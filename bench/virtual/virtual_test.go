package virtual_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/bench/virtual"
	"github.com/mrgc/mrgc/engine/sim/batching"
)

func TestVirtual(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "bench/virtual")
}

var _ = Describe("A world", func() {
	It("has everything happen in the order of its time, and then of when it was said", func() {
		w := virtual.New(nil, func(string, int, batching.Event) {})
		var happened []string
		at := func(t time.Duration, what string) {
			w.At(t, func() error { happened = append(happened, fmt.Sprint(what, w.Now())); return nil })
		}
		at(2*time.Second, "third ")
		at(time.Second, "first ")
		at(time.Second, "second ")
		w.At(3*time.Second, func() error { at(4*time.Second, "last "); return nil })
		Expect(w.Until(4 * time.Second)).To(Succeed())
		Expect(happened).To(Equal([]string{"first 1s", "second 1s", "third 2s", "last 4s"}))
		Expect(w.Time()).To(Equal(virtual.Time(4 * time.Second)))
	})

	It("says whose each token is, in its time", func() {
		machines, err := virtual.Engines(batching.A100(), 2)
		Expect(err).NotTo(HaveOccurred())
		tokens := map[string]int{}
		var last time.Duration
		var w *virtual.World[string]
		w = virtual.New(machines, func(of string, engine int, e batching.Event) {
			Expect(of).To(HavePrefix(fmt.Sprint(engine)))
			Expect(e.At).To(Equal(w.Now()))
			Expect(e.At).To(BeNumerically(">=", last))
			last = e.At
			tokens[of]++
		})
		for i, of := range []string{"0a", "1a", "0b"} {
			w.At(time.Duration(i)*time.Millisecond, func() error {
				return w.Send(i%2, batching.Request{Prompt: make([]batching.Token, 100), Output: make([]batching.Token, 10+i)}, of)
			})
		}
		w.At(time.Minute, func() error { return nil })
		Expect(w.Until(time.Minute)).To(Succeed())
		Expect(tokens).To(Equal(map[string]int{"0a": 10, "1a": 11, "0b": 12}))
	})

	It("ends with the first error", func() {
		w := virtual.New(nil, func(string, int, batching.Event) {})
		broken := errors.New("broken")
		w.At(time.Second, func() error { return broken })
		Expect(w.Until(time.Minute)).To(MatchError(broken))
	})
})
