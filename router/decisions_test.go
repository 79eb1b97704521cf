package router_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/decision"
	"github.com/mrgc/mrgc/internal/routing"
	"github.com/mrgc/mrgc/operator"
)

// admins are the router's, as an operator asks them.
func (r *running) admins() *operator.Admins {
	GinkgoHelper()
	a, err := operator.NewAdmins([]string{"http://" + r.admin}, nil)
	Expect(err).NotTo(HaveOccurred())
	return a
}

var _ = Describe("An operator", func() {
	It("is told of a request through the real Envoy which instance served it, and why", func(ctx SpecContext) {
		r := startBesideEnvoy()
		Expect(r.ask(ctx)).To(Succeed())
		var trace []decision.Record
		Eventually(func() []decision.Record {
			trace = nil
			reader := decision.NewReader(strings.NewReader(r.adminPage("/decisions?last=1").text))
			if record, err := reader.Next(); err == nil && record.Outcome.End != "" {
				trace = append(trace, record)
			}
			return trace
		}).WithTimeout(5 * time.Second).Should(HaveLen(1))
		id, served := trace[0].Request.ID, trace[0].Outcome.Instance
		Expect(hex.DecodeString(id)).To(HaveLen(16))

		found, err := r.admins().Explain(ctx, id)
		Expect(err).NotTo(HaveOccurred())
		Expect(found).To(HaveLen(1))
		got := found[0].Decisions[0]
		Expect(got.Places).To(HaveLen(2))
		Expect(got.Places[0].Instance).To(Equal(served))
		Expect(got.RunnerUp).NotTo(Or(BeEmpty(), Equal(served)))
		Expect(got.Record.Outcome.End).To(Equal(decision.EndServed))

		var text bytes.Buffer
		Expect(operator.PrintExplanations(&text, found)).To(Succeed())
		Expect(text.String()).To(And(ContainSubstring("picked "+served), ContainSubstring("served after"), ContainSubstring(" at "+served),
			ContainSubstring("Envoy waited"), ContainSubstring("policy gate-then-load")))
		Expect(text.String()).NotTo(ContainSubstring(string(r.key.EdgeToken())))
		GinkgoWriter.Print(text.String())

		By("replaying what the router remembers, exactly")
		result, err := r.admins().Replay(ctx, 100, nil)
		Expect(err).NotTo(HaveOccurred())
		Expect(result.Decisions).To(BeNumerically(">", 0))
		Expect(operator.Exact(result)).To(Succeed())

		By("showing the cluster")
		status := r.admins().Ask(ctx)
		Expect(status.Answered()).To(Succeed())
		Expect(status.Envoys).To(HaveExactElements(And(HaveField("State", "SYNCED"), HaveField("AckedAgeSec", BeNumerically(">", 0)))))
		Expect(status.Instances).To(HaveLen(2))
		for _, in := range status.Instances {
			Expect(in.Ready).To(BeTrue())
			Expect(in.Weight).To(BeNumerically(">", 0))
			Expect(in.Score.Terms.Score()).To(Equal(in.Score.Score))
			Expect(in.Score.Terms.Health).To(Equal(20.0))
		}
		text.Reset()
		Expect(status.Print(&text)).To(Succeed())
		GinkgoWriter.Print(text.String())
		Expect(text.String()).To(MatchRegexp(`use1 +use1-0 +- +- +ready +\d+ +\d+ +\d+ +20 `))
		Expect(text.String()).To(MatchRegexp(`use1 +\S+ +SYNCED `))
	})

	It("is told what a router remembers when it does not know a request", func(ctx SpecContext) {
		r := newRouter().start()
		shown := r.adminPage("/decisions/unknown")
		Expect(shown.status).To(Equal(http.StatusNotFound))
		Expect(shown.contentType).To(Equal("application/json"))
		Expect(shown.text).To(ContainSubstring("ask the region's other routers"))
		_, err := r.admins().Explain(ctx, "unknown")
		Expect(err).To(MatchError(And(ContainSubstring(`no decision over request "unknown"`), ContainSubstring(r.admin), ContainSubstring("use1"))))
	})

	DescribeTable("is refused a trace of", func(last string) {
		r := newRouter().start()
		shown := r.adminPage("/decisions?last=" + last)
		Expect(shown.status).To(Equal(http.StatusBadRequest))
		Expect(shown.text).To(ContainSubstring("1 to 4096"))
	}, Entry("none", "0"), Entry("more than there can be", "4097"), Entry("what is no number", "x"))

	It("sees each instance's score with its terms", func() {
		r := newRouter().start()
		p := startParent(r.ca, "use1", "use1-0")
		p.instance.Health.Engine, p.instance.Load.Running = false, 2
		r.publish(p)
		var page struct {
			Region    string
			Instances []struct {
				Instance, Of, Report string
				Score                int
				Terms                routing.Terms
			}
		}
		Eventually(func() int {
			Expect(json.Unmarshal([]byte(r.adminPage("/scores").text), &page)).To(Succeed())
			return len(page.Instances)
		}).Should(Equal(1))
		Expect(page.Region).To(Equal("use1"))
		Expect(page.Instances[0].Of).To(Equal("heartbeat"))
		Expect(page.Instances[0].Terms).To(Equal(routing.Terms{Queue: 37.5, Latency: 30, Health: 10}))
		Expect(page.Instances[0].Score).To(Equal(78))
	})

	It("is told which routers do not answer", func() {
		a, err := operator.NewAdmins([]string{"http://127.0.0.1:1"}, nil)
		Expect(err).NotTo(HaveOccurred())
		status := a.Ask(context.Background())
		Expect(status.Routers).To(HaveExactElements(And(HaveField("Ready", false), HaveField("Reason", ContainSubstring("does not answer")))))
		Expect(status.Answered()).To(MatchError(ContainSubstring("no router answers")))
		_, err = a.Explain(context.Background(), "x")
		Expect(err).To(MatchError(ContainSubstring("does not answer")))
	})
})
