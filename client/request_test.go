package client_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"io"
	"net/http"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/client"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/seal"
)

var _ = Describe("A client", func() {
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

	It("answers an SDK's request as OpenAI would", func(ctx SpecContext) {
		var engineSaw []byte
		var path string
		c.engine = func(r *http.Request) (*http.Response, error) {
			path = r.URL.Path
			engineSaw, _ = io.ReadAll(r.Body)
			return answer("application/json", body(reply)), nil
		}
		resp := t.ask(ctx)
		expectReply(resp)
		Expect(resp.Header.Get("Content-Type")).To(Equal("application/json"))
		Expect(path).To(Equal("/v1/chat/completions"))
		Expect(engineSaw).To(MatchJSON(chat))
	})

	It("keeps the operation of a completion", func(ctx SpecContext) {
		var path string
		c.engine = func(r *http.Request) (*http.Response, error) {
			path = r.URL.Path
			return answer("application/json", body(reply)), nil
		}
		resp, err := t.send(ctx, http.MethodPost, "/completions", body(`{"model":"smol","prompt":"x"}`))
		Expect(err).NotTo(HaveOccurred())
		expectReply(resp)
		Expect(path).To(Equal("/v1/completions"))
	})

	It("passes each event of a stream on as it comes", func(ctx SpecContext) {
		events, stream := io.Pipe()
		c.engine = func(*http.Request) (*http.Response, error) { return answer("text/event-stream", events), nil }
		const first = "data: {\"a\":1}\n\n"
		go func() { _, _ = io.WriteString(stream, first) }() // the head comes with it
		resp, err := t.send(ctx, http.MethodPost, "/chat/completions", body(strings.Replace(chat, "{", `{"stream":true,`, 1)))
		Expect(err).NotTo(HaveOccurred())
		Expect(resp.Header.Get("Content-Type")).To(Equal("text/event-stream"))
		expectNext := func(event string) {
			GinkgoHelper()
			read := make([]byte, len(event))
			_, err = io.ReadFull(resp.Body, read)
			Expect(err).NotTo(HaveOccurred())
			Expect(string(read)).To(Equal(event))
		}
		expectNext(first)
		for _, event := range []string{"data: {\"b\":2}\n\n", "data: [DONE]\n\n"} {
			_, err := io.WriteString(stream, event)
			Expect(err).NotTo(HaveOccurred())
			expectNext(event)
		}
		Expect(stream.Close()).To(Succeed())
		_, err = resp.Body.Read(make([]byte, 1))
		Expect(err).To(Equal(io.EOF))
	})

	It("lets nothing secret leave", func(ctx SpecContext) {
		expectReply(t.ask(ctx))
		_, err := t.send(ctx, http.MethodGet, "/models", nil)
		Expect(err).NotTo(HaveOccurred())
		secret := c.key.Text()[len("mrgc-acme-"):]
		raw, err := base64.RawURLEncoding.DecodeString(secret)
		Expect(err).NotTo(HaveOccurred())

		Expect(e.requests(api.PathKeys)).To(HaveLen(1))
		Expect(e.requests(api.PathSealed)).To(HaveLen(1))
		Expect(e.requests(api.PathModels)).To(HaveLen(1))
		for _, path := range []string{api.PathKeys, api.PathSealed, api.PathModels} {
			for _, request := range e.requests(path) {
				var wire bytes.Buffer
				wire.WriteString(request.url)
				Expect(request.header.Write(&wire)).To(Succeed())
				wire.Write(request.body)
				for what, hidden := range map[string][]byte{
					"the key": []byte(c.key.Text()), "its secret": []byte(secret), "its secret's bytes": raw,
					"the enclave token": c.key.EnclaveToken(), "the cache secret": c.key.CacheSecret(), "the prompt": []byte(prompt),
				} {
					Expect(bytes.Contains(wire.Bytes(), hidden)).To(BeFalse(), "%s travels to %s", what, path)
				}
				Expect(request.header.Get("Authorization")).To(Equal("Bearer " + string(c.key.EdgeToken())))
				Expect(request.header.Get(api.HeaderTenant)).To(Equal("acme"))
			}
		}
	})

	It("shows a certificate in the place of the edge token", func(ctx SpecContext) {
		e := c.startEdgeFor(tls.RequireAnyClientCert)
		config := c.config(e)
		config.ClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &e.server.TLS.Certificates[0], nil // any will do
		}
		expectReply(c.tenant(config).ask(ctx))
		for _, request := range append(e.requests(api.PathKeys), e.requests(api.PathSealed)...) {
			Expect(request.header).NotTo(HaveKey("Authorization"))
			Expect(request.header.Get(api.HeaderTenant)).To(Equal("acme"))
		}
	})

	It("draws a new request id for each request", func(ctx SpecContext) {
		expectReply(t.ask(ctx))
		expectReply(t.ask(ctx))
		sealed := e.requests(api.PathSealed)
		Expect(sealed).To(HaveLen(2))
		Expect(sealed[0].header.Get(api.HeaderRequestID)).NotTo(Equal(sealed[1].header.Get(api.HeaderRequestID)))
	})

	It("lists the models", func(ctx SpecContext) {
		resp, err := t.send(ctx, http.MethodGet, "/models", nil)
		Expect(err).NotTo(HaveOccurred())
		Expect(readAll(resp)).To(MatchJSON(`{"object":"list","data":[{"id":"smol","object":"model","created":1,"owned_by":"mrgc","metadata":{"modes":["process"]}}]}`))
	})

	It("passes a sealed error on", func(ctx SpecContext) {
		resp, err := t.send(ctx, http.MethodPost, "/chat/completions", body(`{"model":"smol","messages":[],"lora":"x"}`))
		Expect(err).NotTo(HaveOccurred())
		refused := refusal(resp)
		Expect(refused.Status).To(Equal(http.StatusBadRequest))
		Expect(refused.Code).To(Equal("unknown_field"))
		Expect(refused.Param).To(Equal("lora"))
	})

	It("passes a sealed Retry-After on", func(ctx SpecContext) {
		c.engine = func(*http.Request) (*http.Response, error) { return nil, io.ErrUnexpectedEOF }
		resp := t.ask(ctx)
		Expect(resp.Header.Get("Retry-After")).To(Equal("1"))
		Expect(refusal(resp).Code).To(Equal("engine_unreachable"))
	})

	DescribeTable("refuses without asking anyone", func(ctx SpecContext, method, path, content string, status int, code string) {
		config := c.config(e)
		config.RequestBodyBytes = 100
		resp, err := c.tenant(config).send(ctx, method, path, body(content))
		Expect(err).NotTo(HaveOccurred())
		refused := refusal(resp)
		Expect(refused.Status).To(Equal(status))
		Expect(refused.Code).To(Equal(code))
		Expect(e.seen).To(BeEmpty())
	},
		Entry("an operation that is not offered", "POST", "/embeddings", chat, 404, "unsupported_operation"),
		Entry("a method that is not offered", "GET", "/chat/completions", "", 404, "unsupported_operation"),
		Entry("a request that is too large", "POST", "/chat/completions", `{"model":"smol","x":"`+strings.Repeat("x", 100)+`"}`, 413, "request_too_large"),
		Entry("no model", "POST", "/chat/completions", `{"messages":[]}`, 400, "invalid_request"),
		Entry("a model that is no text", "POST", "/chat/completions", `{"model":1}`, 400, "invalid_request"),
		Entry("what is not JSON", "POST", "/chat/completions", `smol`, 400, "invalid_request"),
		Entry("an empty body", "POST", "/chat/completions", "", 400, "invalid_request"),
	)

	DescribeTable("wants an API key", func(ctx SpecContext, key string) {
		t.key = key
		refused := refusal(t.ask(ctx))
		Expect(refused.Status).To(Equal(http.StatusUnauthorized))
		Expect(refused.Code).To(Equal("invalid_api_key"))
		Expect(refused.Type).To(Equal(api.TypeAuthentication))
		Expect(refused.Message).NotTo(ContainSubstring("sk-secret"))
		Expect(e.seen).To(BeEmpty())
	},
		Entry("none", ""), Entry("another provider's", "sk-secret"),
		Entry("one that was cut off", "mrgc-acme-AAAA"), Entry("one without a tenant", "mrgc--"+strings.Repeat("A", 43)),
	)

	It("takes a request without a body for an empty one", func(ctx SpecContext) {
		resp, err := t.send(ctx, http.MethodPost, "/chat/completions", nil)
		Expect(err).NotTo(HaveOccurred())
		Expect(refusal(resp).Code).To(Equal("invalid_request"))
	})

	It("takes a request of exactly the largest size", func(ctx SpecContext) {
		config := c.config(e)
		config.RequestBodyBytes = int64(len(chat))
		expectReply(c.tenant(config).ask(ctx))
	})

	It("gives up when its caller does", func(ctx SpecContext) {
		asked := make(chan struct{})
		c.engine = func(r *http.Request) (*http.Response, error) {
			close(asked)
			<-r.Context().Done()
			return nil, r.Context().Err()
		}
		ctx1, cancel := context.WithCancel(ctx)
		go func() {
			<-asked
			cancel()
		}()
		_, err := t.send(ctx1, http.MethodPost, "/chat/completions", body(chat))
		Expect(err).To(MatchError(context.Canceled))
	})
})

var _ = Describe("New", func() {
	DescribeTable("refuses", func(change func(*client.Config), reason string) {
		config := client.Config{
			Endpoints: []string{"https://use1.example.com"},
			Policy:    client.Policy{Releases: []attest.Release{{Version: 1, Name: "x"}}},
		}
		_, err := client.New(config)
		Expect(err).NotTo(HaveOccurred())
		change(&config)
		_, err = client.New(config)
		Expect(err).To(MatchError(ContainSubstring(reason)))
	},
		Entry("no endpoint", func(c *client.Config) { c.Endpoints = nil }, "no endpoint"),
		Entry("an endpoint in clear", func(c *client.Config) { c.Endpoints[0] = "http://use1.example.com" }, "https://host"),
		Entry("an endpoint with a path", func(c *client.Config) { c.Endpoints[0] += "/v1" }, "https://host"),
		Entry("an endpoint with a query", func(c *client.Config) { c.Endpoints[0] += "?x=1" }, "https://host"),
		Entry("an endpoint without a host", func(c *client.Config) { c.Endpoints[0] = "https:" }, "https://host"),
		Entry("no releases", func(c *client.Config) { c.Policy.Releases = nil }, "no trusted releases"),
		Entry("a mode that there is not", func(c *client.Config) { c.Policy.Modes = []string{seal.ModeNitro, "nitro+host"} },
			`mode "nitro+host": want some of process, nitro, nitro+attested-host, nitro+attested-host+gpu-cc`),
		Entry("a request that lives too long", func(c *client.Config) { c.RequestLifetime = seal.MaxLifetime + 1 }, "lifetime"),
		Entry("a request that does not live", func(c *client.Config) { c.RequestLifetime = -time.Second }, "lifetime"),
		Entry("a negative size", func(c *client.Config) { c.RequestBodyBytes = -1 }, "-1 bytes"),
		Entry("too many recipients", func(c *client.Config) { c.Recipients = seal.MaxRecipients + 1 }, "5 recipients"),
		Entry("a negative number of recipients", func(c *client.Config) { c.Recipients = -1 }, "-1 recipients"),
	)
})
