package e2e_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
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

// forger is a tenant who seals by hand, and so can send what no client would.
type forger struct {
	url        string // of the region's Envoy
	model      string
	key        credential.Key
	recipients []*seal.Recipient // of every instance
	http       *http.Client
}

// newForger fetches recipients. It verifies none: the cluster is the test's own.
func (c *cluster) newForger(ctx context.Context) *forger {
	GinkgoHelper()
	f := &forger{url: c.envoys()["use1"], model: c.env()["MRGC_MODEL"]}
	var err error
	f.key, err = credential.Parse(c.env()["OPENAI_API_KEY"])
	Expect(err).NotTo(HaveOccurred())
	var offered api.Recipients
	Expect(json.Unmarshal([]byte(c.keys(ctx)), &offered)).To(Succeed())
	for _, o := range offered.Recipients {
		recipient, err := seal.ParseRecipient(o.Claims)
		Expect(err).NotTo(HaveOccurred())
		f.recipients = append(f.recipients, recipient)
	}
	transport := &http.Transport{TLSClientConfig: c.tls(), ForceAttemptHTTP2: true}
	DeferCleanup(transport.CloseIdleConnections)
	f.http = &http.Client{Transport: transport}
	return f
}

// chat is a chat completion with one message.
func (f *forger) chat(content string) []byte {
	GinkgoHelper()
	body, err := json.Marshal(map[string]any{
		"model": f.model, "messages": []map[string]string{{"role": "user", "content": content}},
	})
	Expect(err).NotTo(HaveOccurred())
	return body
}

// seal makes a request that is as it should be, but for what change does to it
// before it is sealed.
func (f *forger) seal(body []byte, change func(*seal.Request)) *seal.Sealed {
	GinkgoHelper()
	request := seal.Request{
		Operation: seal.OpChatCompletions,
		Model:     f.model, Tenant: f.key.Tenant(), Affinity: "c7",
		Expiry:  time.Now().Add(time.Minute),
		Payload: seal.Payload{Credential: f.key.EnclaveToken(), CacheSecret: f.key.CacheSecret(), Body: body},
	}
	_, _ = rand.Read(request.RequestID[:]) // never fails
	if change != nil {
		change(&request)
	}
	sealed, err := seal.Seal(rand.Reader, request, f.recipients)
	Expect(err).NotTo(HaveOccurred())
	return sealed
}

// letter is a sealed request that has not left yet.
type letter struct {
	path   string
	header http.Header
	body   []byte
	length int64 // announced; -1: none
}

// letter puts a sealed request into its headers, with the tenant's edge token.
func (f *forger) letter(sealed *seal.Sealed) *letter {
	header := http.Header{}
	if sealed.Headers.Size != "" {
		header.Set(api.HeaderSize, sealed.Headers.Size)
	}
	if sealed.Headers.Affinity != "" {
		header.Set(api.HeaderAffinity, sealed.Headers.Affinity)
	}
	for name, value := range map[string]string{
		"Content-Type":       api.ContentTypeSealedRequest,
		"Authorization":      "Bearer " + string(f.key.EdgeToken()),
		api.HeaderModel:      sealed.Headers.Model,
		api.HeaderTenant:     sealed.Headers.Tenant,
		api.HeaderRequestID:  sealed.Headers.RequestID.String(),
		api.HeaderRecipients: seal.FormatKeyIDs(sealed.Headers.KeyIDs),
	} {
		header.Set(name, value)
	}
	body := bytes.Clone(sealed.Body)
	return &letter{path: api.PathSealed, header: header, body: body, length: int64(len(body))}
}

// reply is what came back, whatever it was.
type reply struct {
	status int
	header http.Header
	body   []byte
}

func (f *forger) send(ctx context.Context, l *letter) reply {
	GinkgoHelper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, f.url+l.path, bytes.NewReader(l.body))
	Expect(err).NotTo(HaveOccurred())
	req.Header, req.ContentLength = l.header, l.length
	resp, err := f.http.Do(req)
	Expect(err).NotTo(HaveOccurred())
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	Expect(err).NotTo(HaveOccurred())
	return reply{resp.StatusCode, resp.Header, body}
}

// all is everything that a tenant could tell one reply from another by, but for
// the time and the instance.
func (r reply) all() string {
	header := r.header.Clone()
	header.Del("Date")
	header.Del(api.HeaderServed)
	var out strings.Builder
	fmt.Fprintf(&out, "%d\n", r.status)
	_ = header.Write(&out) // a builder takes all
	out.Write(r.body)
	return out.String()
}

// opened gives the status and the body inside a sealed reply.
func (r reply) opened(sealed *seal.Sealed) (status int, body []byte) {
	GinkgoHelper()
	Expect(r.status).To(Equal(http.StatusOK), "%s", r.body)
	Expect(r.header.Get("Content-Type")).To(Equal(api.ContentTypeSealedResponse))
	answer := sealed.OpenResponse(bytes.NewReader(r.body))
	head, err := answer.Head()
	Expect(err).NotTo(HaveOccurred())
	body, err = io.ReadAll(answer)
	Expect(err).NotTo(HaveOccurred())
	return head.Status, body
}

// Where an envelope's fields begin (docs/protocol.md, "Body").
const (
	atVersion          = 0
	atSuite            = 1
	atOperation        = 2
	atRequestID        = 3
	atExpiryLowByte    = 26
	atRecipientsLength = 27
	atRecipientCount   = 29
	atStanza           = 30 // the first; within it:
	inStanzaType       = 8
	inStanzaEncLength  = 9
	inStanzaEnc        = 11
	inStanzaDEKLength  = inStanzaEnc + 1120
	inStanzaDEK        = inStanzaDEKLength + 2
	stanzaBytes        = inStanzaDEK + 48
	commitmentBytes    = 32
	chunkHeaderBytes   = 3
)

// split gives what comes before an envelope's chunks, and the chunks.
func split(envelope []byte) (head []byte, chunks [][]byte) {
	at := atStanza + int(envelope[atRecipientCount])*stanzaBytes + commitmentBytes
	head, rest := envelope[:at], envelope[at:]
	for len(rest) > 0 {
		size := chunkHeaderBytes + int(binary.BigEndian.Uint16(rest[1:]))
		chunks = append(chunks, rest[:size])
		rest = rest[size:]
	}
	return head, chunks
}

// rechunk puts other chunks into a letter.
func (l *letter) rechunk(change func(chunks [][]byte) [][]byte) {
	head, chunks := split(l.body)
	l.body = slices.Concat(append([][]byte{head}, change(chunks)...)...)
	l.length = int64(len(l.body))
}
