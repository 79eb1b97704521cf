package e2e_test

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/credential"
	"github.com/mrgc/mrgc/internal/seal"
)

// describeRefusals has what is refused for a reason that is told.
func describeRefusals(b *badInput) {
	DescribeTable("that is refused says why:", func(ctx SpecContext, status int, code string, spoil func(*letter)) {
		l := b.good()
		spoil(l)
		b.refused(ctx, l, status, code)
	},
		Entry("an unknown model", 404, "model_not_found", func(l *letter) { l.header.Set(api.HeaderModel, "gpt-99") }),
		Entry("no model", 400, "request_not_sealed", func(l *letter) { l.header.Del(api.HeaderModel) }),
		Entry("two models", 400, "invalid_header", func(l *letter) { l.header.Add(api.HeaderModel, b.model) }),
		Entry("recipients that nobody is", 409, "stale_recipients", func(l *letter) {
			l.header.Set(api.HeaderRecipients, seal.KeyID{7}.String())
		}),
		Entry("plain text where sealed requests go", 400, "request_not_sealed", func(l *letter) {
			l.header.Set("Content-Type", "application/json")
			l.body = b.prompt(100)
			l.length = int64(len(l.body))
		}),
		Entry("plain text where OpenAI's go", 400, "request_not_sealed", func(l *letter) {
			l.path = "/v1/chat/completions"
			l.header = http.Header{"Content-Type": {"application/json"}, "Authorization": {"Bearer " + b.key.Text()}}
			l.body = b.prompt(100)
			l.length = int64(len(l.body))
		}),
		Entry("plain text that calls itself sealed", 400, "cannot_open", func(l *letter) {
			l.body = b.prompt(100)
			l.length = int64(len(l.body))
		}),
		Entry("two content types", 400, "request_not_sealed", func(l *letter) { l.header.Add("Content-Type", api.ContentTypeSealedRequest) }),
		Entry("a query", 400, "invalid_request", func(l *letter) { l.path += "?x=1" }),
		invalidHeaders(),
	)
}

// describeSizes has the limit of a request's body, 8 MiB in mrgc.yaml.
func describeSizes(b *badInput) {
	It("is not what is as large as it may be", func(ctx SpecContext) {
		sealed := b.seal(b.prompt(7<<20), nil)
		Expect(len(sealed.Body)).To(BeNumerically("~", 8<<20, 1<<20))
		status, _ := b.send(ctx, b.letter(sealed)).opened(sealed)
		Expect(status).To(Equal(http.StatusOK))
	})

	DescribeTable("is a body over the limit,", func(ctx SpecContext, announce func(*letter)) {
		l := b.letter(b.seal(b.prompt(8<<20), nil))
		announce(l)
		b.refused(ctx, l, http.StatusRequestEntityTooLarge, "request_too_large")
	},
		Entry("announced", func(*letter) {}),
		Entry("not announced", func(l *letter) { l.length = -1 }),
	)
}

// describeStrangers has who is not the tenant, before an envelope is open and
// after.
func describeStrangers(b *badInput) {
	It("of whoever is no tenant gets one answer, whatever gives it away", func(ctx SpecContext) {
		var answers []string
		for _, spoil := range []func(http.Header){
			func(h http.Header) { h.Set("Authorization", h.Get("Authorization")+"x") },
			func(h http.Header) { h.Set("Authorization", "Bearer "+b.key.Text()) },
			func(h http.Header) { h.Set("Authorization", "Bearer "+string(b.key.EnclaveToken())) },
			func(h http.Header) {
				h.Set("Authorization", strings.Replace(h.Get("Authorization"), "Bearer", "Basic", 1))
			},
			func(h http.Header) { h.Add("Authorization", h.Get("Authorization")) },
			func(h http.Header) { h.Del("Authorization") },
			func(h http.Header) { h.Set(api.HeaderTenant, "nobody") },
		} {
			l := b.good()
			spoil(l.header)
			answers = append(answers, b.refused(ctx, l, http.StatusUnauthorized, "invalid_api_key").all())
		}
		Expect(answers).To(HaveEach(answers[0]))
	})

	It("that opens and is refused is refused under seal", func(ctx SpecContext) {
		stranger, err := credential.New(rand.Reader, b.key.Tenant())
		Expect(err).NotTo(HaveOccurred())
		for _, bad := range []struct {
			what   string
			body   []byte
			change func(*seal.Request)
			status int
			code   string
		}{
			{"a wrong key", b.prompt(100), func(r *seal.Request) { r.Payload.Credential = stranger.EnclaveToken() }, 401, "invalid_api_key"},
			{"the edge token for a key", b.prompt(100), func(r *seal.Request) { r.Payload.Credential = b.key.EdgeToken() }, 401, "invalid_api_key"},
			{"no key", b.prompt(100), func(r *seal.Request) { r.Payload.Credential = nil }, 401, "invalid_api_key"},
			{"another model inside", []byte(`{"model":"gpt-99","messages":[]}`), nil, 400, "invalid_request"},
			{"a field twice", []byte(`{"model":"told","model":"told","messages":[]}`), nil, 400, "invalid_request"},
			{"no JSON", []byte(b.marker), nil, 400, "invalid_request"},
		} {
			By(bad.what)
			ran := b.ran.Load()
			sealed := b.seal(bad.body, bad.change)
			r := b.send(ctx, b.letter(sealed))
			b.shown.WriteString(r.all())
			status, body := r.opened(sealed)
			e := api.ParseError(status, body)
			Expect([]any{e.Status, e.Code}).To(Equal([]any{bad.status, bad.code}), "%s", body)
			Expect(b.ran.Load()).To(Equal(ran))
		}
	})
}

// describeTime has what was right once, or will be.
func describeTime(b *badInput) {
	It("is a request again, which runs once on each of its recipients and no more", func(ctx SpecContext) {
		ran := b.ran.Load()
		sealed := b.seal(b.prompt(100), nil)
		var replayed int
		for range 6 {
			switch r := b.send(ctx, b.letter(sealed)); r.status {
			case http.StatusOK:
				status, _ := r.opened(sealed)
				Expect(status).To(Equal(http.StatusOK))
			default:
				replayed++
				b.expectError(r, http.StatusConflict, "request_replayed")
			}
		}
		Expect(replayed).To(BeNumerically(">=", 4))
		Expect(b.ran.Load() - ran).To(BeEquivalentTo(6 - replayed))
	})

	DescribeTable("is a clock that is off by", func(ctx SpecContext, off time.Duration, served bool) {
		sealed := b.seal(b.prompt(100), func(r *seal.Request) { r.Expiry = r.Expiry.Add(off) })
		if !served {
			e := api.ParseError(0, b.refused(ctx, b.letter(sealed), http.StatusBadRequest, "request_expired").body)
			Expect(e.Message).To(ContainSubstring("clock"))
			return
		}
		status, _ := b.send(ctx, b.letter(sealed)).opened(sealed)
		Expect(status).To(Equal(http.StatusOK))
	},
		Entry(nil, -45*time.Second, true), Entry(nil, 45*time.Second, true),
		Entry(nil, -5*time.Minute, false), Entry(nil, 5*time.Minute, false),
		Entry(nil, -365*24*time.Hour, false), Entry(nil, 365*24*time.Hour, false),
	)
}

// invalidHeaders are the headers that a request is bound to, each missing,
// twice, joined, or with what it cannot hold.
func invalidHeaders() (entries []TableEntry) {
	entry := func(what string, change func(http.Header)) {
		entries = append(entries, Entry(what, 400, "invalid_header", func(l *letter) { change(l.header) }))
	}
	malformed := map[string]string{
		api.HeaderTenant: "two words", api.HeaderAffinity: "two words", api.HeaderSize: "large",
		api.HeaderRequestID: "7", api.HeaderRecipients: "all",
	}
	for _, name := range slices.Sorted(maps.Keys(malformed)) {
		entry("two of "+name, func(h http.Header) { h.Add(name, h.Get(name)) })
		entry("two, joined, of "+name, func(h http.Header) { h.Set(name, h.Get(name)+", "+h.Get(name)) })
		entry("a malformed "+name, func(h http.Header) { h.Set(name, malformed[name]) })
		entry("an empty "+name, func(h http.Header) { h.Set(name, "") })
		if name != api.HeaderAffinity && name != api.HeaderSize {
			entry("no "+name, func(h http.Header) { h.Del(name) })
		}
	}
	return entries
}

// describeConnections has what only a client of one's own making can send.
func describeConnections(b *badInput) {
	// exchange writes to Envoy over TLS, ends there or waits for more, and gives
	// what Envoy says until it hangs up.
	exchange := func(ctx context.Context, text string, end bool) string {
		GinkgoHelper()
		config := b.c.tls()
		config.NextProtos = []string{"http/1.1"}
		conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", strings.TrimPrefix(b.url, "https://"))
		Expect(err).NotTo(HaveOccurred())
		defer conn.Close()
		Expect(conn.SetDeadline(time.Now().Add(5 * time.Second))).To(Succeed())
		_, err = io.WriteString(conn, text)
		Expect(err).NotTo(HaveOccurred())
		if end {
			Expect(conn.(*tls.Conn).CloseWrite()).To(Succeed())
		}
		said, err := io.ReadAll(conn)
		Expect(err).NotTo(HaveOccurred(), "it hangs up")
		b.shown.Write(said)
		return string(said)
	}
	// headers writes a good letter's, as HTTP/1.1.
	headers := func(l *letter, more ...string) string {
		var out strings.Builder
		out.WriteString("POST " + l.path + " HTTP/1.1\r\nHost: localhost\r\n")
		_ = l.header.Write(&out)
		return out.String() + strings.Join(more, "\r\n") + "\r\n\r\n"
	}

	DescribeTable("is a connection on which there is", func(ctx SpecContext, want string, text func(l *letter) string) {
		ran := b.ran.Load()
		said := exchange(ctx, text(b.good()), want == "")
		if want == "" {
			Expect(said).To(BeEmpty())
		} else {
			Expect(said).To(And(HavePrefix("HTTP/1.1 "+want), ContainSubstring(`{"error":{"message":`)))
		}
		Expect(b.ran.Load()).To(Equal(ran))
	},
		Entry("half a body", "", func(l *letter) string {
			return headers(l, fmt.Sprintf("Content-Length: %d", len(l.body))) + string(l.body[:len(l.body)/2])
		}),
		Entry("half a body in chunks", "", func(l *letter) string {
			return headers(l, "Transfer-Encoding: chunked") + fmt.Sprintf("%x\r\n%s", len(l.body), l.body[:len(l.body)/2])
		}),
		Entry("half of the headers", "", func(l *letter) string { return headers(l)[:100] }),
		Entry("a body of two lengths", "400", func(l *letter) string {
			return headers(l, "Content-Length: 7", fmt.Sprintf("Content-Length: %d", len(l.body))) + string(l.body)
		}),
		Entry("a body of two framings", "400", func(l *letter) string {
			return headers(l, "Content-Length: 7", "Transfer-Encoding: chunked") + "0\r\n\r\n"
		}),
		Entry("no HTTP", "400", func(*letter) string { return strings.Repeat(b.marker, 100) + "\r\n\r\n" }),
		Entry("a header too large", "431", func(l *letter) string {
			return headers(l, "X-Much: "+strings.Repeat("x", 100<<10), "Content-Length: 0")
		}),
	)
}
