package local

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gbytes"
)

// healthyPages is what a region's router and Envoy say of a cluster of one
// instance that is healthy.
func healthyPages() map[string]string {
	return map[string]string{
		"/fleet":   `{"instances":[{"id":"use1-0","ready":true}]}`,
		"/envoys":  `{"envoys":[{"synced":true}]}`,
		"/ready":   `{}`,
		"/peers":   `{"peers":[]}`,
		"/healthz": ``,
	}
}

// clusterOf is a cluster of one instance, whose admin and health are pages.
func clusterOf(pages map[string]string) (*cluster, *gbytes.Buffer) { return clusterWith(1, pages) }

// clusterWith is the same with several routers, which all say the same.
func clusterWith(routers int, pages map[string]string) (*cluster, *gbytes.Buffer) {
	GinkgoHelper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		page, ok := pages[r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_, _ = io.WriteString(w, page)
	}))
	DeferCleanup(server.Close)
	p := planFor(func(o *Options) { o.Regions, o.Instances, o.Routers = []string{"use1"}, 1, routers })
	address := strings.TrimPrefix(server.URL, "http://")
	for i := range p.regions[0].routers {
		p.regions[0].routers[i].admin = address
	}
	p.regions[0].health, p.connect = address, address
	out := gbytes.NewBuffer()
	return &cluster{plan: p, ui: newDisplay(out), started: time.Now()}, out
}

var _ = Describe("A start", func() {
	It("is over when all is healthy", func(ctx SpecContext) {
		c, out := clusterOf(healthyPages())
		Expect(c.waitUntilReady(ctx)).To(Succeed())
		Expect(out).To(gbytes.Say(`✓ health   1 regions, 1 instances \([0-9.]+ s\)\n`))
	})

	DescribeTable("is not over while", func(ctx SpecContext, page, says, reason string) {
		pages := healthyPages()
		if says == "" {
			delete(pages, page)
		} else {
			pages[page] = says
		}
		c, _ := clusterOf(pages)
		Expect(c.missing(ctx)).To(MatchError(reason))
	},
		Entry("an instance is not ready", "/fleet", `{"instances":[{"id":"use1-0","reason":"the model loads"}]}`, "use1: router-use1: instance use1-0: the model loads"),
		Entry("an instance is missing", "/fleet", `{"instances":[]}`, "use1: router-use1: 0 of 1 instances registered"),
		Entry("the router does not know the fleet", "/fleet", "", "use1: router-use1: /fleet answers with status 503"),
		Entry("there is no Envoy", "/envoys", `{"envoys":[]}`, "use1: envoy has not acknowledged its configuration"),
		Entry("Envoy has not taken everything", "/envoys", `{"envoys":[{"synced":false}]}`, "use1: envoy has not acknowledged its configuration"),
		Entry("there are no documents", "/ready", "", "use1: router-use1: /ready answers with status 503"),
		Entry("Envoy is not healthy", "/healthz", "", "use1: envoy: /healthz answers with status 503"),
	)

	It("is over when routers hear each other, and Envoy has heard one", func(ctx SpecContext) {
		pages := healthyPages()
		c, _ := clusterWith(2, pages)
		Expect(c.missing(ctx)).To(MatchError("use1: router-use1: another router is not heard"))
		pages["/peers"] = `{"peers":[{"state":"not heard"}]}`
		Expect(c.missing(ctx)).To(MatchError("use1: router-use1: another router is not heard"))
		pages["/peers"] = `{"peers":[{"state":"connected"}]}`
		Expect(c.missing(ctx)).To(Succeed())
	})

	It("says what was missing when it is given up", func(ctx SpecContext) {
		c, _ := clusterOf(nil)
		ending, end := context.WithCancel(ctx)
		end()
		err := c.waitUntilReady(ending)
		Expect(err).To(MatchError(And(ContainSubstring("use1: router-use1"), ContainSubstring("/state/logs"))))
		Expect(endedBy(ending, err)).To(Succeed())
		Expect(endedBy(ctx, err)).To(MatchError(err))
	})

	It("shows a first answer", func(ctx SpecContext) {
		c, out := clusterOf(map[string]string{
			"/v1/chat/completions": "data: {\"choices\":[{\"delta\":{\"content\":\"Par\"}}]}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"is.\"}}]}\n\ndata: [DONE]\n\n",
		})
		Expect(c.ask(ctx, "mrgc-dev-key")).To(Succeed())
		Expect(out).To(gbytes.Say(`  Paris\.\n`))
		Expect(string(out.Contents())).NotTo(ContainSubstring("mrgc-dev-key"))
	})

	DescribeTable("fails with a first answer that", func(ctx SpecContext, answer, reason string) {
		c, _ := clusterOf(map[string]string{"/v1/chat/completions": answer})
		Expect(c.ask(ctx, "mrgc-dev-key")).To(MatchError(ContainSubstring(reason)))
	},
		Entry("is cut off", "data: {\"choices\":[{\"delta\":{\"content\":\"Par\"}}]}\n\n", "unexpected EOF"),
		Entry("is empty", "data: [DONE]\n\n", "the answer is empty"),
		Entry("is none", "data: hello\n\n", "event"),
	)

	It("fails with a first request that is refused", func(ctx SpecContext) {
		c, _ := clusterOf(nil)
		Expect(c.ask(ctx, "mrgc-dev-key")).To(MatchError(ContainSubstring("status 503")))
	})
})

var _ = Describe("A display", func() {
	It("shows whole lines only where there is no terminal", func() {
		out := gbytes.NewBuffer()
		ui := newDisplay(out)
		done := ui.step("parts")
		ui.progress("half of it")
		ui.warn("router-use1 stopped (%s)", "exit status 1")
		done("fetched in %s", ".tools")
		Expect(string(out.Contents())).To(MatchRegexp(`^! router-use1 stopped \(exit status 1\)\n✓ parts    fetched in \.tools \([0-9.]+ s\)\n$`))
	})

	It("replaces passing lines on a terminal", func() {
		out := gbytes.NewBuffer()
		ui := newDisplay(out)
		ui.terminal = true
		ui.progress("half of it")
		ui.say("all of it")
		Expect(string(out.Contents())).To(Equal("\r\x1b[K  half of it\r\x1b[Kall of it\n"))
	})
})
