package sim_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/mrgc/mrgc/engine/sim"
	"github.com/mrgc/mrgc/engine/sim/batching"
)

// quick is an engine with a profile, in which an hour is a few seconds.
func quick() sim.Config {
	return sim.Config{Model: "sim", Profile: batching.H100(), Speed: 1000}
}

// chat is a chat's body; the messages are the user's and the assistant's in turn.
func chat(salt string, maxTokens int, messages ...string) string {
	GinkgoHelper()
	var list []map[string]string
	for i, m := range messages {
		list = append(list, map[string]string{"role": []string{"user", "assistant"}[i%2], "content": m})
	}
	body, err := json.Marshal(map[string]any{"messages": list, "max_tokens": maxTokens, "cache_salt": salt})
	Expect(err).NotTo(HaveOccurred())
	return string(body)
}

type usage struct {
	PromptTokens, CachedTokens int
}

// say posts a chat and gives what was said and used.
func say(ctx context.Context, server *httptest.Server, body string) (string, usage) {
	GinkgoHelper()
	var answer struct {
		Choices []struct {
			Message struct {
				Content string `json:"content"`
			} `json:"message"`
		} `json:"choices"`
		Usage struct {
			PromptTokens int `json:"prompt_tokens"`
			Details      struct {
				CachedTokens int `json:"cached_tokens"`
			} `json:"prompt_tokens_details"`
		} `json:"usage"`
	}
	resp := post(ctx, server, "/v1/chat/completions", body)
	Expect(resp).To(HaveHTTPStatus(http.StatusOK))
	Expect(json.NewDecoder(resp.Body).Decode(&answer)).To(Succeed())
	return answer.Choices[0].Message.Content, usage{answer.Usage.PromptTokens, answer.Usage.Details.CachedTokens}
}

// metrics are the values of metrics; of a histogram it is how many were counted.
func metrics(ctx context.Context, server *httptest.Server) map[string]float64 {
	GinkgoHelper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+"/metrics", nil)
	Expect(err).NotTo(HaveOccurred())
	resp, err := server.Client().Do(req)
	Expect(err).NotTo(HaveOccurred())
	defer func() { _ = resp.Body.Close() }()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	Expect(err).NotTo(HaveOccurred())
	values := map[string]float64{}
	for name, family := range families {
		for _, m := range family.GetMetric() {
			values[name] += m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return values
}

var _ = Describe("The simulator with a profile", func() {
	question := strings.Repeat("What is the tide? ", 40)

	It("finds a conversation's beginning in its cache, its own answer included", func(ctx SpecContext) {
		server := start(quick())
		answer, first := say(ctx, server, chat("a", 50, question))
		Expect(first).To(Equal(usage{PromptTokens: 189}))
		_, again := say(ctx, server, chat("a", 1, question))
		Expect(again.CachedTokens).To(Equal(176))
		_, next := say(ctx, server, chat("a", 1, question, answer, "And the ebb?"))
		Expect(next.CachedTokens).To(Equal(224), "189 and 49 of the answer's 50 tokens, in whole blocks")
		_, other := say(ctx, server, chat("b", 1, question))
		Expect(other.CachedTokens).To(BeZero())
		Expect(post(ctx, server, "/reset_prefix_cache", "")).To(HaveHTTPStatus(http.StatusOK))
		_, forgotten := say(ctx, server, chat("a", 1, question))
		Expect(forgotten.CachedTokens).To(BeZero())
	})

	It("tells it at the end of a stream too", func(ctx SpecContext) {
		server := start(quick())
		body := `{"prompt":"` + question + `","stream":true,"max_tokens":3,"stream_options":{"include_usage":true}}`
		for _, cached := range []string{`{"cached_tokens":0}`, `{"cached_tokens":176}`} {
			stream, err := io.ReadAll(post(ctx, server, "/v1/completions", body).Body)
			Expect(err).NotTo(HaveOccurred())
			Expect(string(stream)).To(ContainSubstring(`"prompt_tokens_details":` + cached))
		}
	})

	It("says the same in a stream as in one piece", func(ctx SpecContext) {
		server := start(quick())
		whole, _ := say(ctx, server, `{"response_format":{"type":"json_object"},"max_tokens":5}`)
		stream, err := io.ReadAll(post(ctx, server, "/v1/chat/completions", `{"stream":true,"response_format":{"type":"json_object"},"max_tokens":5}`).Body)
		Expect(err).NotTo(HaveOccurred())
		var streamed strings.Builder
		for line := range bytes.Lines(stream) {
			var event struct {
				Choices []struct {
					Delta struct{ Role, Content string } `json:"delta"`
				} `json:"choices"`
			}
			if data, ok := bytes.CutPrefix(line, []byte("data: {")); ok {
				Expect(json.Unmarshal(append([]byte("{"), data...), &event)).To(Succeed())
				role := ""
				if streamed.Len() == 0 {
					role = "assistant"
				}
				Expect(event.Choices[0].Delta.Role).To(Equal(role))
				streamed.WriteString(event.Choices[0].Delta.Content)
				if streamed.Len() == len(whole) {
					break
				}
			}
		}
		Expect(streamed.String()).To(Equal(whole))
		Expect(whole).To(MatchJSON(`{"text": "sun set and one old "}`))
	})

	It("takes the time of the hardware", func(ctx SpecContext) {
		server := start(sim.Config{Model: "sim", Profile: batching.A100()})
		began := time.Now()
		say(ctx, server, chat("", 3, question))
		Expect(time.Since(began)).To(BeNumerically(">=", 3*batching.A100().Step))
	})

	It("counts under vLLM's names", func(ctx SpecContext) {
		server := start(quick())
		say(ctx, server, chat("", 5, question))
		say(ctx, server, chat("", 5, question))
		got := metrics(ctx, server)
		for name, value := range map[string]float64{
			"vllm:num_requests_running": 0, "vllm:num_requests_waiting": 0, "vllm:kv_cache_usage_perc": 0,
			"vllm:prefix_cache_queries_total": 378, "vllm:prefix_cache_hits_total": 176, "vllm:num_preemptions_total": 0,
			"vllm:prompt_tokens_total": 378, "vllm:generation_tokens_total": 10, "vllm:request_success_total": 2,
			"vllm:time_to_first_token_seconds": 2, "vllm:inter_token_latency_seconds": 8, "vllm:e2e_request_latency_seconds": 2,
			"vllm:cache_config_info": 1,
		} {
			Expect(got).To(HaveKeyWithValue(name, value))
		}
	})

	It("shows how full its cache is, and empties it when a caller goes", func(ctx SpecContext) {
		cfg := quick()
		cfg.Speed, cfg.Profile.KVBlocks, cfg.Slots = 1, 100, 1
		server := start(cfg)
		caller, leave := context.WithCancel(ctx)
		defer leave()
		stream := post(caller, server, "/v1/chat/completions", `{"stream":true,"max_tokens":1000,"messages":[{"role":"user","content":"`+question+`"}]}`)
		_, err := stream.Body.Read(make([]byte, 1))
		Expect(err).NotTo(HaveOccurred())
		Expect(metrics(ctx, server)["vllm:kv_cache_usage_perc"]).To(BeNumerically(">=", 0.12))
		leave()
		Eventually(func() map[string]float64 { return metrics(ctx, server) }).Should(And(
			HaveKeyWithValue("vllm:kv_cache_usage_perc", 0.0), HaveKeyWithValue("vllm:num_requests_running", 0.0)))
	})

	It("refuses what its cache cannot hold", func(ctx SpecContext) {
		cfg := quick()
		cfg.Profile.KVBlocks = 10
		server := start(cfg)
		resp := post(ctx, server, "/v1/chat/completions", chat("", 1, question))
		Expect(resp).To(HaveHTTPStatus(http.StatusBadRequest))
		Expect(resp).To(HaveHTTPBody(ContainSubstring("context of 160 tokens")))
		// Three words of JSON mode's own are beyond what was asked for.
		Expect(post(ctx, server, "/v1/completions", `{"prompt":"x","max_tokens":158,"response_format":{"type":"json_object"}}`)).To(HaveHTTPStatus(http.StatusBadRequest))
	})
})

var _ = Describe("The tokenizer", func() {
	DescribeTable("counts as the engine does", func(ctx SpecContext, path, body string, tokens int) {
		server := start(quick())
		answer := decode(post(ctx, server, path, body))
		Expect(answer["usage"]).To(HaveKeyWithValue("prompt_tokens", float64(tokens)))
		tokenized := decode(post(ctx, server, "/tokenize", body))
		Expect(tokenized).To(And(HaveKeyWithValue("count", float64(tokens)), HaveKeyWithValue("max_model_len", 467280.0)))
		Expect(tokenized["tokens"]).To(HaveLen(tokens))

		var rendered any
		resp := post(ctx, server, path+"/render", body)
		Expect(json.NewDecoder(resp.Body).Decode(&rendered)).To(Succeed())
		if list, ok := rendered.([]any); ok {
			rendered = list[0]
		}
		Expect(rendered).To(HaveKeyWithValue("token_ids", Equal(tokenized["tokens"])))
	},
		Entry("a chat", "/v1/chat/completions", `{"messages":[{"role":"user","content":"hello"}]}`, 11),
		Entry("a chat in parts", "/v1/chat/completions", `{"messages":[{"role":"user","content":[{"type":"text","text":"he"},{"type":"text","text":"llo"}]}]}`, 11),
		Entry("a chat with a picture", "/v1/chat/completions", `{"messages":[{"role":"user","content":[{"url":"abcdef"}]}]}`, 13),
		Entry("a chat of another kind", "/v1/chat/completions", `{"messages":[{"role":"user","content":{"x":1}}]}`, 11),
		Entry("a chat without content", "/v1/chat/completions", `{"messages":[{"role":"user","content":null}]}`, 9),
		Entry("a chat with tools", "/v1/chat/completions", `{"tools":[1234567],"messages":[]}`, 11),
		Entry("a text", "/v1/completions", `{"prompt":"12345678"}`, 3),
		Entry("no text", "/v1/completions", `{}`, 1),
		Entry("texts", "/v1/completions", `{"prompt":["1234","5678","9"]}`, 4),
		Entry("tokens", "/v1/completions", `{"prompt":[1,2,3]}`, 4),
	)

	DescribeTable("refuses", func(ctx SpecContext, path string) {
		server := start(quick())
		Expect(post(ctx, server, path, "hello")).To(HaveHTTPStatus(http.StatusBadRequest))
		Expect(post(ctx, server, path, `{"model":"other"}`)).To(HaveHTTPStatus(http.StatusNotFound))
	},
		Entry(nil, "/tokenize"),
		Entry(nil, "/v1/chat/completions/render"),
		Entry(nil, "/v1/completions/render"),
	)
})

var _ = Describe("Faults", func() {
	It("fail a share of the requests at once, and can be changed", func(ctx SpecContext) {
		cfg := quick()
		cfg.Faults.FailShare = 0.25
		server, engine := startEngine(cfg)
		statuses := func(n int) (failed int) {
			for range n {
				if resp := post(ctx, server, "/v1/completions", "{}"); resp.StatusCode == http.StatusInternalServerError {
					failed++
				}
			}
			return failed
		}
		Expect(statuses(8)).To(Equal(2))
		Expect(engine.SetFaults(sim.Faults{FailShare: 1})).To(Succeed())
		Expect(statuses(3)).To(Equal(3))
		Expect(engine.SetFaults(sim.Faults{})).To(Succeed())
		Expect(statuses(3)).To(Equal(0))
	})

	DescribeTable("make it slow", func(ctx SpecContext, cfg sim.Config) {
		_, engine := startEngine(cfg)
		Expect(engine.SetFaults(sim.Faults{Slowness: 10})).To(Succeed())
		began := time.Now()
		w := httptest.NewRecorder()
		engine.ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodPost, "/v1/completions", strings.NewReader(`{"max_tokens":2}`)))
		Expect(w).To(HaveHTTPStatus(http.StatusOK))
		Expect(time.Since(began)).To(BeNumerically(">=", 120*time.Millisecond))
	},
		Entry("with a profile", sim.Config{Model: "sim", Profile: batching.H100()}),
		Entry("without", sim.Config{Model: "sim", Slots: 1, FirstToken: 8 * time.Millisecond, PerToken: 4 * time.Millisecond}),
	)

	DescribeTable("are refused", func(faults sim.Faults, reason string) {
		engine, err := sim.New(quick())
		Expect(err).NotTo(HaveOccurred())
		Expect(engine.SetFaults(faults)).To(MatchError(ContainSubstring(reason)))
	},
		Entry(nil, sim.Faults{Slowness: -1}, "slowness of -1"),
		Entry(nil, sim.Faults{Slowness: math.NaN()}, "slowness of NaN"),
		Entry(nil, sim.Faults{FailShare: 1.5}, "share of 1.5"),
		Entry(nil, sim.Faults{FailShare: -0.5}, "share of -0.5"),
	)
})

var _ = Describe("A configuration", func() {
	DescribeTable("is refused", func(breakIt func(*sim.Config), reason string) {
		cfg := quick()
		breakIt(&cfg)
		_, err := sim.New(cfg)
		Expect(err).To(MatchError(ContainSubstring(reason)))
	},
		Entry("without a model's name", func(c *sim.Config) { c.Model = "" }, "model's name"),
		Entry("with negative slots", func(c *sim.Config) { c.Slots = -1 }, "not negative"),
		Entry("with a profile and fixed times", func(c *sim.Config) { c.PerToken = 1 }, "leave one of them out"),
		Entry("with a profile that cannot be", func(c *sim.Config) { c.Profile.KVBlocks = 0 }, "one block"),
		Entry("with time that runs backwards", func(c *sim.Config) { c.Speed = -1 }, "speed of -1"),
		Entry("with faults that cannot be", func(c *sim.Config) { c.Faults.FailShare = 2 }, "share of 2"),
	)
})

var _ = Describe("Listening on an address", func() {
	DescribeTable("is refused", func(ctx SpecContext, cfg sim.Config, reason string) {
		cfg.Model, cfg.Slots = "sim", 1
		Expect(sim.Run(ctx, cfg, nil)).To(MatchError(ContainSubstring(reason)))
	},
		Entry("where other machines reach it", sim.Config{Listen: "0.0.0.0:0"}, "0.0.0.0:0 is open to other machines"),
		Entry("on all of them", sim.Config{Listen: ":0"}, "open to other machines"),
		Entry("on no address", sim.Config{Listen: "x"}, "missing port"),
		Entry("beside a socket", sim.Config{Listen: "127.0.0.1:0", Socket: "x"}, "one of them"),
		Entry("or nowhere", sim.Config{}, "one of them"),
	)

	It("is refused to a listener too, which is closed", func(ctx SpecContext) {
		engine, err := sim.New(quick())
		Expect(err).NotTo(HaveOccurred())
		l, err := net.Listen("tcp", ":0")
		Expect(err).NotTo(HaveOccurred())
		Expect(engine.Serve(ctx, l)).To(MatchError(ContainSubstring("open to other machines")))
		_, err = l.Accept()
		Expect(err).To(MatchError(net.ErrClosed))
	})

	It("works on loopback, and ends with the context", func(ctx SpecContext) {
		serving, end := context.WithCancel(ctx)
		defer end()
		engine, err := sim.New(quick())
		Expect(err).NotTo(HaveOccurred())
		l, err := net.Listen("tcp", "127.0.0.1:0")
		Expect(err).NotTo(HaveOccurred())
		ended := make(chan error, 1)
		go func() { ended <- engine.Serve(serving, l) }()
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Get("http://" + l.Addr().String() + "/health")
		Expect(err).NotTo(HaveOccurred())
		Expect(resp).To(HaveHTTPStatus(http.StatusOK))
		Expect(resp.Body.Close()).To(Succeed())
		end()
		Eventually(ended).Should(Receive(BeNil()))
	})

	It("is what Run does", func(ctx SpecContext) {
		serving, end := context.WithCancel(ctx)
		ready := func() { end() }
		Expect(sim.Run(serving, sim.Config{Model: "sim", Slots: 1, Listen: "127.0.0.1:0"}, ready)).To(Succeed())
	})
})
