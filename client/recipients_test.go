package client_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/client"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/seal"
)

// hangUp breaks the connection off.
func hangUp(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

// stale is what a cluster says of keys that nobody holds; anyone can.
func stale(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set(api.HeaderKeyStatus, api.KeyStatusStale)
	w.WriteHeader(http.StatusConflict)
}

var _ = Describe("Recipients", func() {
	var (
		c *cluster
		e *edge
		t *tenant
	)
	BeforeEach(func() {
		c = newCluster()
		e = c.startEdge()
		t = c.tenant(c.config(e))
	})

	kids := func(recipients ...api.Recipient) string {
		GinkgoHelper()
		var all []seal.KeyID
		for _, r := range recipients {
			all = append(all, keyID(r))
		}
		return seal.FormatKeyIDs(all)
	}
	// last is whom the last request was sealed to.
	last := func() string {
		sealed := e.requests(api.PathSealed)
		return sealed[len(sealed)-1].header.Get(api.HeaderRecipients)
	}

	It("are kept", func(ctx SpecContext) {
		for range 3 {
			expectReply(t.ask(ctx))
			c.clock.Advance(time.Second)
		}
		Expect(e.requests(api.PathKeys)).To(HaveLen(1))
		Expect(e.requests(api.PathKeys)[0].url).To(Equal(api.PathKeys + "?model=smol&sets=16"))
	})

	DescribeTable("are asked for by number by those who seal to more than are offered", func(ctx SpecContext, n int, query string) {
		config := c.config(e)
		config.Recipients = n
		t := c.tenant(config)
		expectReply(t.ask(ctx))
		Expect(e.requests(api.PathKeys)[0].url).To(Equal(api.PathKeys + query))
	},
		Entry("one", 1, "?model=smol&sets=16"), Entry("as many", 3, "?model=smol&sets=16"), Entry("more", 4, "?model=smol&n=4&sets=16"),
	)

	Describe("in sets", func() {
		var listed []api.Recipient
		answer := func(answer api.Recipients) {
			e.on(api.PathKeys, func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(answer) })
		}
		BeforeEach(func() {
			c.replace(append(c.present(), c.newEnclave(), c.newEnclave(), c.newEnclave(), c.newEnclave())...)
			listed = c.recipients()
		})

		// sealedTo is whom so many requests of conversations of their own are sealed to.
		sealedTo := func(ctx context.Context, requests int) (seen []string) {
			GinkgoHelper()
			for i := range requests {
				resp, err := t.send(ctx, http.MethodPost, "/chat/completions", strings.NewReader(strings.Replace(chat, prompt, fmt.Sprintf("%d", i), 1)))
				Expect(err).NotTo(HaveOccurred())
				Expect(resp.StatusCode).To(Equal(http.StatusOK))
				seen = append(seen, last())
			}
			return seen
		}

		It("are sealed to in turn", func(ctx SpecContext) {
			answer(api.Recipients{Recipients: listed, Sets: [][]int{{0, 1, 2}, {3, 1, 4}, {4, 0}}})
			seen := sealedTo(ctx, 6)
			Expect(seen[:3]).To(ConsistOf(
				kids(listed[0], listed[1], listed[2]), kids(listed[3], listed[1], listed[4]), kids(listed[4], listed[0], listed[1])), "the last of them filled up")
			Expect(seen[3:]).To(Equal(seen[:3]))
		})

		It("lack those that were refused, and no others", func(ctx SpecContext) {
			forged := slices.Clone(listed)
			forged[1].Attestation = forged[2].Attestation
			answer(api.Recipients{Recipients: forged, Sets: [][]int{{0, 1, 2}, {1}, {4, 3, 1}}})
			Expect(sealedTo(ctx, 2)).To(ConsistOf(kids(listed[0], listed[2], listed[3]), kids(listed[4], listed[3], listed[0])))
		})

		DescribeTable("are refused if they name what is not there", func(ctx SpecContext, sets [][]int) {
			answer(api.Recipients{Recipients: listed, Sets: sets})
			refused := refusal(t.ask(ctx))
			Expect(refused.Status).To(Equal(http.StatusBadGateway))
			Expect(refused.Code).To(Equal("unexpected_response"))
			Expect(e.requests(api.PathSealed)).To(BeEmpty())
		},
			Entry("a place too far", [][]int{{0, 5}}), Entry("a place before the first", [][]int{{-1}}), Entry("too many in one", [][]int{{0, 1, 2, 3, 4}}),
			Entry("more than were asked for", slices.Repeat([][]int{{0}}, api.MaxSets+1)),
		)
	})

	It("are not told again of when they are known", func(ctx SpecContext) {
		c.replace(append(c.present(), c.newEnclave())...)
		listed := c.recipients()
		expectReply(t.ask(ctx))
		fresh := c.newEnclave()
		c.replace(append(c.present(), fresh)...)
		answered := make(chan struct{})
		e.on(api.PathKeys, func(w http.ResponseWriter, r *http.Request) {
			defer close(answered)
			Expect(r.URL.Query().Get("known")).To(Equal(kids(listed...)))
			writeRecipients(w, []api.Recipient{{KeyID: kids(listed[1])}, recipientsOf(fresh)[0], {KeyID: "0123456789abcdef"}, {KeyID: "no id"}})
		})
		c.clock.Advance(5 * time.Second)
		expectReply(t.ask(ctx)) // has them fetched
		Eventually(answered).Should(BeClosed())
		Eventually(func() string {
			expectReply(t.ask(ctx))
			return last()
		}).WithTimeout(10*time.Second).Should(Equal(kids(listed[1], recipientsOf(fresh)[0], listed[0])), "without the two that it has never heard of")
	})

	It("are fetched anew beside a request once they have aged", func(ctx SpecContext) {
		expectReply(t.ask(ctx))
		fetched, release := make(chan struct{}), make(chan struct{})
		e.on(api.PathKeys, func(w http.ResponseWriter, _ *http.Request) {
			close(fetched)
			<-release
			writeRecipients(w, c.recipients())
		})
		c.clock.Advance(5 * time.Second)
		expectReply(t.ask(ctx)) // while the router has yet to answer
		Eventually(fetched).Should(BeClosed())
		expectReply(t.ask(ctx)) // does not ask again
		close(release)
		Expect(e.requests(api.PathKeys)).To(HaveLen(2))
	})

	It("take effect when they have been fetched anew", func(ctx SpecContext) {
		expectReply(t.ask(ctx))
		before := c.present()
		c.replace(append(before, c.newEnclave())...)
		c.clock.Advance(5 * time.Second)
		Eventually(func() int {
			expectReply(t.ask(ctx))
			sealed := e.requests(api.PathSealed)
			return len(sealed[len(sealed)-1].header.Get(api.HeaderRecipients))
		}).WithTimeout(10 * time.Second).Should(Equal(16 + 1 + 16))
		Expect(e.requests(api.PathKeys)).To(HaveLen(2))
	})

	It("are those that answered a conversation last, too, though others are listed by now", func(ctx SpecContext) {
		expectReply(t.ask(ctx))
		c.replace(append(c.present(), c.newEnclave(), c.newEnclave(), c.newEnclave(), c.newEnclave())...)
		first, listed := c.recipients()[0], c.recipients()[1:]
		e.on(api.PathKeys, func(w http.ResponseWriter, _ *http.Request) { writeRecipients(w, listed) })
		c.clock.Advance(5 * time.Second)
		expectReply(t.ask(ctx)) // has them fetched
		Expect(last()).To(Equal(kids(first)))
		Eventually(func() string {
			expectReply(t.ask(ctx))
			return last()
		}).WithTimeout(10 * time.Second).Should(Equal(kids(first, listed[0], listed[1], listed[2])))

		By("another conversation going by the list alone")
		_, err := t.send(ctx, http.MethodPost, "/chat/completions", strings.NewReader(strings.Replace(chat, prompt, "hello", 1)))
		Expect(err).NotTo(HaveOccurred())
		Expect(last()).To(Equal(kids(listed[:3]...)))
	})

	It("are earlier ones, too, when fewer are listed, but none that has turned out to be gone", func(ctx SpecContext) {
		c.replace(append(c.present(), c.newEnclave(), c.newEnclave())...)
		listed := c.recipients()
		hello := func() {
			GinkgoHelper()
			_, err := t.send(ctx, http.MethodPost, "/chat/completions", strings.NewReader(strings.Replace(chat, prompt, rand.Text(), 1)))
			Expect(err).NotTo(HaveOccurred())
		}
		hello()
		Expect(last()).To(Equal(kids(listed...)))

		By("an instance answering in the routers' place, with itself")
		e.on(api.PathKeys, func(w http.ResponseWriter, _ *http.Request) { writeRecipients(w, listed[2:]) })
		c.clock.Advance(5 * time.Second)
		Eventually(func() string { hello(); return last() }).WithTimeout(10 * time.Second).Should(Equal(kids(listed[2], listed[0], listed[1])))

		By("all of them being replaced")
		c.replace(c.newEnclave())
		fresh := c.recipients()
		e.on(api.PathKeys, func(w http.ResponseWriter, _ *http.Request) { writeRecipients(w, fresh) })
		for range 2 {
			hello()
			Expect(last()).To(Equal(kids(fresh...)))
		}
	})

	It("are fetched once for all who wait", func(ctx SpecContext) {
		release := make(chan struct{})
		e.on(api.PathKeys, func(w http.ResponseWriter, _ *http.Request) {
			<-release
			writeRecipients(w, c.recipients())
		})
		var asking sync.WaitGroup
		for range 16 {
			asking.Go(func() {
				defer GinkgoRecover()
				expectReply(t.ask(ctx))
			})
		}
		Eventually(e.count(api.PathKeys)).Should(Equal(1))
		close(release)
		asking.Wait()
		Expect(e.requests(api.PathKeys)).To(HaveLen(1))
	})

	It("do not keep one who leaves, and are there for the next", func(ctx SpecContext) {
		asked, release := make(chan struct{}), make(chan struct{})
		e.on(api.PathKeys, func(w http.ResponseWriter, _ *http.Request) {
			close(asked)
			<-release
			writeRecipients(w, c.recipients())
		})
		leaving, leave := context.WithCancel(ctx)
		left := make(chan error, 1)
		go func() {
			defer GinkgoRecover()
			_, err := t.send(leaving, http.MethodPost, "/chat/completions", body(chat))
			left <- err
		}()
		Eventually(asked).Should(BeClosed())
		leave()
		Eventually(left).Should(Receive(MatchError(context.Canceled)))
		close(release)
		expectReply(t.ask(ctx))
		Expect(e.requests(api.PathKeys)).To(HaveLen(1))
	})

	It("outlast the router, but not their claims", func(ctx SpecContext) {
		expectReply(t.ask(ctx))
		e.on(api.PathKeys, hangUp)
		for range 23 {
			c.clock.Advance(time.Hour)
			expectReply(t.ask(ctx))
		}
		c.clock.Advance(time.Hour)
		_, err := t.send(ctx, http.MethodPost, "/chat/completions", body(chat))
		Expect(err).To(HaveOccurred())
		Expect(e.requests(api.PathSealed)).To(HaveLen(24))
	})

	It("need not be attested again while their claims are the same", func(ctx SpecContext) {
		expectReply(t.ask(ctx))
		offered := c.recipients()
		offered[0].Attestation = nil
		e.on(api.PathKeys, func(w http.ResponseWriter, _ *http.Request) { writeRecipients(w, offered) })
		for range 3 {
			c.clock.Advance(10 * time.Minute)
			expectReply(t.ask(ctx))
		}
		Eventually(e.count(api.PathKeys)).Should(BeNumerically(">", 1))
	})

	It("are of one model each", func(ctx SpecContext) {
		expectReply(t.ask(ctx))
		resp, err := t.send(ctx, http.MethodPost, "/chat/completions", body(`{"model":"large","messages":[]}`))
		Expect(err).NotTo(HaveOccurred())
		e.refusesAfter(1, resp, `serves "smol"`)
	})

	DescribeTable("that are refused to the tenant give the cluster's own error", func(ctx SpecContext, status int, content, code string) {
		e.on(api.PathKeys, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(status)
			_, _ = w.Write([]byte(content))
		})
		resp := t.ask(ctx)
		Expect(resp.Header.Get("Retry-After")).To(Equal("7"))
		refused := refusal(resp)
		Expect(refused.Status).To(Equal(status))
		Expect(refused.Code).To(Equal(code))
		Expect(refused.Message).NotTo(ContainSubstring("proxy"))
	},
		Entry("in OpenAI's shape", 404, `{"error":{"message":"no","type":"invalid_request_error","code":"model_not_found"}}`, "model_not_found"),
		Entry("in another shape", 503, `<html>proxy</html>`, "unexpected_response"),
	)

	It("that cannot be read are an error", func(ctx SpecContext) {
		e.on(api.PathKeys, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("hello")) })
		refused := refusal(t.ask(ctx))
		Expect(refused.Status).To(Equal(http.StatusBadGateway))
		Expect(refused.Code).To(Equal("unexpected_response"))
	})

	When("an enclave has been replaced", func() {
		BeforeEach(func(ctx SpecContext) {
			expectReply(t.ask(ctx))
			c.replace(c.newEnclave())
		})

		It("are fetched once more, and the request is sealed anew", func(ctx SpecContext) {
			expectReply(t.ask(ctx))
			Expect(e.requests(api.PathKeys)).To(HaveLen(2))
			Expect(t.sealing.Stats()).To(Equal(client.Stats{Requests: 2, Resealed: 1}))
			sealed := e.requests(api.PathSealed)[1:]
			Expect(sealed).To(HaveLen(2))
			Expect(sealed[0].header.Get(api.HeaderRequestID)).NotTo(Equal(sealed[1].header.Get(api.HeaderRequestID)))
			Expect(sealed[1].header.Get(api.HeaderRecipients)).To(Equal(keyID(c.recipients()[0]).String()))
		})

		It("are fetched at most once for each version by those who find it stale together", func(ctx SpecContext) {
			var asking sync.WaitGroup
			for range 8 {
				asking.Go(func() {
					defer GinkgoRecover()
					expectReply(t.ask(ctx))
				})
			}
			asking.Wait()
			Expect(e.requests(api.PathKeys)).To(HaveLen(2))
		})
	})

	It("are fetched only once more by a request that finds them stale again", func(ctx SpecContext) {
		e.on(api.PathSealed, stale)
		resp := t.ask(ctx)
		Expect(resp.Header.Get("Retry-After")).To(Equal("1"))
		refused := refusal(resp)
		Expect(refused.Status).To(Equal(http.StatusServiceUnavailable))
		Expect(refused.Code).To(Equal("recipients_changing"))
		Expect(e.requests(api.PathKeys)).To(HaveLen(2))
		Expect(e.requests(api.PathSealed)).To(HaveLen(2))
	})
})

// refusesAfter is refuses when some requests have been sealed before.
func (e *edge) refusesAfter(sealed int, resp *http.Response, reason string) {
	GinkgoHelper()
	refused := refusal(resp)
	Expect(refused.Code).To(Equal("no_trusted_recipient"))
	Expect(refused.Message).To(ContainSubstring(reason))
	Expect(e.requests(api.PathSealed)).To(HaveLen(sealed))
}
