package client_test

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/client"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/credential"
	"github.com/mrgc/mrgc/internal/seal"
	"github.com/mrgc/mrgc/internal/size"
)

// headerVector is a request and the headers that it must have. The file was made
// by a program in another language, from docs/protocol.md.
type headerVector struct {
	Comment   string         `json:"comment"`
	APIKey    string         `json:"api_key"`
	Operation seal.Operation `json:"operation"`
	Request   string         `json:"request"`
	Size      string         `json:"size"`
	Affinity  string         `json:"affinity"`
}

func headerVectors() ([]headerVector, error) {
	raw, err := os.ReadFile(filepath.Join("testdata", "headers.json"))
	if err != nil {
		return nil, err
	}
	var vectors []headerVector
	return vectors, json.Unmarshal(raw, &vectors)
}

var _ = Describe("The headers that routing sees", func() {
	It("are those of the test vectors", func() {
		vectors, err := headerVectors()
		Expect(err).NotTo(HaveOccurred())
		Expect(vectors).NotTo(BeEmpty())
		for _, v := range vectors {
			By(v.Comment)
			key, err := credential.Parse(v.APIKey)
			Expect(err).NotTo(HaveOccurred())
			size, affinity, err := client.Routed(v.Operation, []byte(v.Request), &key)
			Expect(err).NotTo(HaveOccurred())
			Expect(size).To(Equal(v.Size))
			Expect(affinity).To(Equal(v.Affinity))
		}
	})

	It("go with the request, and the enclave agrees", func(ctx SpecContext) {
		c := newCluster()
		e := c.startEdge()
		expectReply(c.tenant(c.config(e)).ask(ctx))
		sent := e.requests(api.PathSealed)[0].header
		Expect(sent.Values(api.HeaderSize)).To(Equal([]string{"64/1024"}))
		Expect(sent.Values(api.HeaderAffinity)).To(Equal([]string{affinityOf(&c.key, seal.OpChatCompletions, chat)}))
		Expect(sent.Values(api.HeaderFrames)).To(Equal([]string{api.FramesRead}), "and that all frames can be read")
	})

	It("are without an affinity when the policy wants none", func(ctx SpecContext) {
		c := newCluster()
		e := c.startEdge()
		config := c.config(e)
		config.Policy.NoAffinity = true
		expectReply(c.tenant(config).ask(ctx))
		sent := e.requests(api.PathSealed)[0].header
		Expect(sent).NotTo(HaveKey(api.HeaderAffinity))
		Expect(sent.Values(api.HeaderSize)).To(Equal([]string{"64/1024"}))
	})

	It("are the same when recipients have changed and the request is sealed anew", func(ctx SpecContext) {
		c := newCluster()
		e := c.startEdge()
		t := c.tenant(c.config(e))
		expectReply(t.ask(ctx))
		c.replace(c.newEnclave())
		expectReply(t.ask(ctx))
		sealed := e.requests(api.PathSealed)
		Expect(sealed).To(HaveLen(3))
		for _, name := range []string{api.HeaderAffinity, api.HeaderSize} {
			Expect(sealed[1].header.Get(name)).NotTo(BeEmpty())
			Expect(sealed[2].header.Get(name)).To(Equal(sealed[1].header.Get(name)))
		}
	})
})

var _ = Describe("What an answer has used", func() {
	DescribeTable("is in its trailer", func(ctx SpecContext, said string, want ...string) {
		c := newCluster()
		c.engine = func(*http.Request) (*http.Response, error) { return answer("application/json", body(said)), nil }
		resp := c.tenant(c.config(c.startEdge())).ask(ctx)
		Expect(resp.Trailer).To(HaveKeyWithValue(api.HeaderUsage, BeNil()))
		Expect(readAll(resp)).To(Equal(said))
		Expect(resp.Trailer.Values(api.HeaderUsage)).To(ConsistOf(want))
	},
		Entry("exactly", `{"usage":{"prompt_tokens":17,"completion_tokens":300}}`, "17/300"),
		Entry("when there is an answer of no tokens", `{"usage":{"prompt_tokens":17,"completion_tokens":0}}`, "17/0"),
		Entry("unless the engine has not said", `{}`),
	)

	It("is not in the trailer of an answer that was cut", func(ctx SpecContext) {
		c := newCluster()
		c.engineBreaksOff("application/json", `{"usage":{"prompt_tokens":17,"completion_tokens":300}}`)
		resp := c.tenant(c.config(c.startEdge())).ask(ctx)
		_, err := bytes.NewBuffer(nil).ReadFrom(resp.Body)
		Expect(err).To(HaveOccurred())
		Expect(resp.Trailer.Get(api.HeaderUsage)).To(BeEmpty())
	})
})

// message is one of a conversation.
type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// asking is a chat request's JSON.
func asking(messages []message, more ...string) string {
	GinkgoHelper()
	raw, err := json.Marshal(messages)
	Expect(err).NotTo(HaveOccurred())
	return fmt.Sprintf(`{"model":"smol","messages":%s%s}`, raw, strings.Join(more, ""))
}

func affinityOf(key *credential.Key, op seal.Operation, request string) string {
	GinkgoHelper()
	_, affinity, err := client.Routed(op, []byte(request), key)
	Expect(err).NotTo(HaveOccurred())
	return affinity
}

func newKey(tenant string) credential.Key {
	GinkgoHelper()
	key, err := credential.New(rand.Reader, tenant)
	Expect(err).NotTo(HaveOccurred())
	return key
}

var _ = Describe("An affinity", func() {
	var key credential.Key
	BeforeEach(func() { key = newKey("acme") })
	of := func(request string) string {
		GinkgoHelper()
		return affinityOf(&key, seal.OpChatCompletions, request)
	}

	drawConversation := func(t *rapid.T) []message {
		content := rapid.StringN(0, 40, -1)
		var conversation []message
		for range rapid.IntRange(0, 3).Draw(t, "instructions") {
			conversation = append(conversation, message{rapid.SampledFrom([]string{"system", "developer"}).Draw(t, "role"), content.Draw(t, "instruction")})
		}
		conversation = append(conversation, message{"user", content.Draw(t, "question")})
		for range rapid.IntRange(0, 5).Draw(t, "further") {
			conversation = append(conversation, message{rapid.SampledFrom([]string{"assistant", "tool", "system", "user"}).Draw(t, "role"), content.Draw(t, "content")})
		}
		return conversation
	}
	firstUser := func(conversation []message) int {
		for i, m := range conversation {
			if m.Role == "user" {
				return i + 1
			}
		}
		return 0
	}

	It("is the same in all turns of a conversation, and 32 hex digits", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			conversation := drawConversation(t)
			first := of(asking(conversation[:firstUser(conversation)]))
			if strings.Trim(first, "0123456789abcdef") != "" || len(first) != 32 {
				t.Fatalf("affinity %q", first)
			}
			for turn := firstUser(conversation); turn <= len(conversation); turn++ {
				later := of(asking(conversation[:turn], `,"max_tokens":`, fmt.Sprint(turn), `,"stream":true`))
				if later != first {
					t.Fatalf("turn of %d messages has another affinity", turn)
				}
			}
		})
	})

	It("is the same however the JSON is spaced", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			request := asking(drawConversation(t), `,"tools":[{"type":"function"}]`)
			var spaced bytes.Buffer
			Expect(json.Indent(&spaced, []byte(request), " ", "\t")).To(Succeed())
			if of(request) != of(spaced.String()) {
				t.Fatal("white space changes it")
			}
		})
	})

	It("is another one for every other beginning", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			conversation := drawConversation(t)
			opening := firstUser(conversation)
			changed := append([]message(nil), conversation...)
			at := rapid.IntRange(0, opening-1).Draw(t, "changed")
			changed[at].Content += "x"
			for what, other := range map[string]string{
				"a message":        asking(changed),
				"the model":        strings.Replace(asking(conversation), `"smol"`, `"large"`, 1),
				"the tools":        asking(conversation, `,"tools":[]`),
				"a message more":   asking(append([]message{{"system", ""}}, conversation...)),
				"another question": asking(append([]message{{"user", strings.Repeat("?", 41)}}, conversation...)),
			} {
				if of(other) == of(asking(conversation)) {
					t.Fatalf("%s makes no difference to %v", what, conversation)
				}
			}
		})
	})

	It("is another one for every other tenant, and every other key of one", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			request := asking(drawConversation(t))
			seed := rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "secret")
			mine, err := credential.New(bytes.NewReader(seed), "acme")
			Expect(err).NotTo(HaveOccurred())
			theirs, err := credential.New(bytes.NewReader(seed), "other")
			Expect(err).NotTo(HaveOccurred())
			own := affinityOf(&mine, seal.OpChatCompletions, request)
			if own == affinityOf(&theirs, seal.OpChatCompletions, request) || own == of(request) {
				t.Fatal("two keys give one affinity")
			}
		})
	})

	DescribeTable("of a completion", func(one, other string, same bool) {
		completion := func(prompt string) string {
			return affinityOf(&key, seal.OpCompletions, `{"model":"smol","prompt":`+prompt+`}`)
		}
		Expect(completion(one)).To(HaveLen(32))
		if same {
			Expect(completion(other)).To(Equal(completion(one)))
		} else {
			Expect(completion(other)).NotTo(Equal(completion(one)))
		}
	},
		// A prompt's text starts after its quote: 1023 bytes of it count.
		Entry("is the same when only what follows differs", quoted(1023, "x"), quoted(1023, "yz"), true),
		Entry("is another one when the last byte that counts differs", quoted(1022, "x"), quoted(1022, "yz"), false),
		Entry("is another one for a short prompt that is longer", `"short"`, `"shorter"`, false),
		Entry("is the same for the same list of tokens", `[1, 2]`, `[1,2]`, true),
		Entry("is another one for another list", `[1,2]`, `[12]`, false),
		Entry("is another one for a list of one", `"a"`, `["a"]`, false),
	)

	It("of a completion is not a chat's", func() {
		request := `{"model":"smol","prompt":"x","messages":[{"role":"user"}]}`
		Expect(of(request)).NotTo(Equal(affinityOf(&key, seal.OpCompletions, request)))
	})

	DescribeTable("is left out of a request", func(op seal.Operation, request string) {
		Expect(affinityOf(&key, op, request)).To(BeEmpty())
	},
		Entry("without messages", seal.OpChatCompletions, `{"model":"smol","prompt":"x"}`),
		Entry("with an empty list of messages", seal.OpChatCompletions, `{"model":"smol","messages":[]}`),
		Entry("with messages that are no list", seal.OpChatCompletions, `{"model":"smol","messages":"x"}`),
		Entry("that begins with an answer, and has no question", seal.OpChatCompletions, `{"model":"smol","messages":[{"role":"assistant","content":"x"}]}`),
		Entry("with messages that are none", seal.OpChatCompletions, `{"model":"smol","messages":[1,null]}`),
		Entry("without a prompt", seal.OpCompletions, `{"model":"smol","messages":[]}`),
	)
})

// quoted is a prompt of so many bytes and an end.
func quoted(n int, end string) string { return `"` + strings.Repeat("p", n) + end + `"` }

// FuzzRouted looks for a request that makes the client panic, or send a header
// that is none.
func FuzzRouted(f *testing.F) {
	vectors, err := headerVectors()
	if err != nil {
		f.Fatal(err)
	}
	for _, v := range vectors {
		f.Add(v.Operation == seal.OpChatCompletions, []byte(v.Request))
	}
	f.Add(true, []byte(`{"model":"m","messages":[{"role":["user"]},null,{"role":"user"}],"tools":null}`))
	key, err := credential.Parse(vectors[0].APIKey)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, isChat bool, request []byte) {
		op := seal.OpCompletions
		if isChat {
			op = seal.OpChatCompletions
		}
		given := bytes.Clone(request)
		declared, affinity, err := client.Routed(op, request, &key)
		if !bytes.Equal(given, request) {
			t.Fatal("the request was changed in place")
		}
		if err != nil {
			return
		}
		if _, err := size.Parse(declared); err != nil {
			t.Fatal(err)
		}
		if affinity != "" && (len(affinity) != 32 || strings.Trim(affinity, "0123456789abcdef") != "") {
			t.Fatalf("affinity %q", affinity)
		}
	})
}
