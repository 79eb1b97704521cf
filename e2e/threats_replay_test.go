package e2e_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"sync"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/sync/errgroup"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/seal"
)

// runs counts requests by their name.
type runs struct {
	mu sync.Mutex
	of map[string]int // guarded by mu
}

func (r *runs) add(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.of == nil {
		r.of = map[string]int{}
	}
	r.of[name]++
}

func (r *runs) count(name string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.of[name]
}

// replayed is one envelope, and what it was sealed to.
type replayed struct {
	*letter
	name       string // begins the prompt
	recipients int
}

// describeReplays sends the same envelopes over and over: to Envoy and straight to
// enclaves, at once and one after the other, before and after enclaves and routers
// were killed.
func describeReplays(i *intruder) {
	It("has no envelope run twice on one key, across instances and restarts", func(ctx SpecContext) {
		envelopes, sendings := 40, 400
		if os.Getenv("MRGC_TEST_LONG") != "" {
			envelopes, sendings = 200, 10_000
		}
		var all []replayed
		add := func(n int) {
			for k := range n {
				name, f := rand.Text(), *i.forger
				if k%2 == 0 { // every other one to one enclave alone
					f.recipients = f.recipients[k/2%2:][:1]
				}
				all = append(all, replayed{f.letter(f.seal(f.chat(name), nil)), name, len(f.recipients)})
			}
		}
		ways := []*forger{i.forger, i.forger, i.inside("use1-0"), i.inside("use1-1")}
		var became runs // of sendings, by how they were answered
		send := func(ctx context.Context, n int) {
			GinkgoHelper()
			var group errgroup.Group
			group.SetLimit(8)
			for k := range n {
				group.Go(func() error {
					defer GinkgoRecover()
					became.add(ways[k/len(all)%len(ways)].deliver(ctx, all[k%len(all)].letter))
					return nil
				})
			}
			Expect(group.Wait()).To(Succeed())
		}
		check := func() {
			GinkgoHelper()
			for _, r := range all {
				Expect(i.engine.runs.count(r.name)).To(BeNumerically("<=", r.recipients), "it was sealed to %d", r.recipients)
			}
		}

		add(envelopes / 2)
		send(ctx, sendings/2)
		for _, r := range all {
			Expect(i.engine.runs.count(r.name)).To(BeNumerically(">=", 1), "each has run")
		}
		check()

		By("killing an enclave, whose key goes with it, and a router")
		old := i.c.pids()
		for _, name := range []string{"enclave-use1-0", "router-use1"} {
			Expect(syscall.Kill(old[name], syscall.SIGKILL)).To(Succeed())
		}
		send(ctx, sendings/4) // while they are away, and come back
		check()
		Eventually(ctx, func() int { return i.c.pids()["enclave-use1-0"] }, "30s", "100ms").ShouldNot(Or(Equal(old["enclave-use1-0"]), BeZero()))
		before := kidsOf(i.recipients)
		Eventually(ctx, func() []seal.KeyID {
			i.forger.recipients = i.c.newForger(ctx).recipients
			return kidsOf(i.recipients)
		}, "30s", "200ms").Should(And(HaveLen(2), Not(ConsistOf(before[0], before[1]))), "the one has another key")
		for _, to := range i.recipients {
			alone := *i.forger
			alone.recipients = []*seal.Recipient{to}
			Eventually(ctx, func() string { return alone.outcome(ctx) }, "30s", "100ms").Should(HavePrefix("127.0.0.1:"), "pickers know the key")
		}

		By("and once more, old envelopes beside new ones")
		ways[2] = i.inside("use1-0")
		add(envelopes / 2)
		for _, r := range all[envelopes/2:] {
			Eventually(ctx, func() string { return i.deliver(ctx, r.letter) }, "30s", "50ms").Should(Equal("served"))
		}
		send(ctx, sendings/4)
		check()
		for _, admin := range []string{"MRGC_ADMIN_USE1", "MRGC_ADMIN_USE1_1"} {
			Eventually(ctx, func() []string {
				return regexp.MustCompile(`mrgc_(?:peers_)?in_flight\{.*\} \S+`).FindAllString(string(metricsAt(ctx, i.c.env()[admin])), -1)
			}, "20s").Should(And(HaveLen(4), HaveEach(HaveSuffix(" 0"))), "nothing counts for much longer than it lasts, whoever was killed")
		}
		AddReportEntry("replays", fmt.Sprintf("%d envelopes sent %d times, to Envoy and to both enclaves, past two kills; none ran twice on one key: %v",
			len(all), sendings, became.of))
	}, NodeTimeout(10*time.Minute))
}

func kidsOf(recipients []*seal.Recipient) (kids []seal.KeyID) {
	for _, r := range recipients {
		kids = append(kids, r.KeyID())
	}
	return kids
}

// deliver sends a letter that may have been sent before, and says what became of
// it: "served", the code of the refusal, or "broken" of a connection that was, as
// those of an enclave that is killed are.
func (f *forger) deliver(ctx context.Context, l *letter) string {
	GinkgoHelper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, f.url+l.path, bytes.NewReader(l.body))
	Expect(err).NotTo(HaveOccurred())
	req.Header, req.ContentLength = l.header.Clone(), l.length
	resp, err := f.http.Do(req)
	if err != nil {
		return "broken"
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return "broken"
	case resp.StatusCode == http.StatusOK:
		return "served"
	}
	return api.ParseError(resp.StatusCode, body).Code
}
