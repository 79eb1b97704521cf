package e2e_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/client/kmskey"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/seal"
	"github.com/mrgc/mrgc/internal/vsock"
)

// part is a field of an envelope: where it lies in the bytes that were sealed.
type part struct {
	name   string
	at     int
	length int
}

// partsOf finds the fields by walking an envelope along its own lengths, as
// docs/protocol.md has them. What it does not account for to the last byte is an
// error of the walk.
func partsOf(envelope []byte) (parts []part) {
	GinkgoHelper()
	at := 0
	take := func(name string, length int) []byte {
		parts = append(parts, part{name, at, length})
		at += length
		return envelope[at-length : at]
	}
	take("version", 1)
	take("suite", 1)
	take("operation", 1)
	take("request id", 16)
	take("expiry", 8)
	take("recipients' length", 2)
	for i := range take("number of recipients", 1)[0] {
		of := func(name string) string { return fmt.Sprintf("%s of recipient %d", name, i) }
		take(of("kid"), 8)
		take(of("type"), 1)
		take(of("enc"), int(binary.BigEndian.Uint16(take(of("length of enc"), 2))))
		take(of("wrapped DEK"), int(binary.BigEndian.Uint16(take(of("length of the wrapped DEK"), 2))))
	}
	take("commitment", 32)
	for i := 0; at < len(envelope); i++ {
		of := func(name string) string { return fmt.Sprintf("%s of chunk %d", name, i) }
		take(of("final flag"), 1)
		length := int(binary.BigEndian.Uint16(take(of("length"), 2)))
		take(of("ciphertext"), length-16)
		take(of("tag"), 16)
	}
	Expect(at).To(Equal(len(envelope)))
	return parts
}

// spoiled is a request in which one thing is not as it was sealed.
type spoiled struct {
	what string
	*letter
}

// spoiledBodies are ways to spoil each field: every other value of a byte, of what is longer each byte in turn, and the whole; and the field left out, or there twice.
func spoiledBodies(good *letter) (all []spoiled) {
	GinkgoHelper()
	for _, p := range partsOf(good.body) {
		change := func(how string, value []byte) {
			if old := good.body[p.at : p.at+p.length]; bytes.Equal(old, value) {
				return
			}
			l := *good
			l.body = slices.Concat(good.body[:p.at], value, good.body[p.at+p.length:])
			l.length = int64(len(l.body))
			all = append(all, spoiled{p.name + ": " + how, &l})
		}
		old := good.body[p.at : p.at+p.length]
		change("left out", nil)
		change("twice", slices.Concat(old, old))
		change("zeros", make([]byte, p.length))
		change("ones", bytes.Repeat([]byte{0xff}, p.length))
		if p.length == 1 {
			for value := range 256 {
				change(fmt.Sprint(value), []byte{byte(value)})
			}
			continue
		}
		for i := 0; i < len(old); i += 1 + len(old)/2048*8 { // of a full chunk, some
			value := bytes.Clone(old)
			value[i] ^= 1 << (i % 8)
			change(fmt.Sprintf("byte %d", i), value)
		}
		if p.length == 2 { // a length
			for _, by := range []int{-1, 1} {
				change(fmt.Sprintf("%+d", by), binary.BigEndian.AppendUint16(nil, uint16(int(binary.BigEndian.Uint16(old))+by)))
			}
		}
	}
	return all
}

// spoiledHeaderFields are all ways to spoil one of the headers that are named: left
// out, empty, twice, cut, longer, each character another one, and upper case.
func spoiledHeaderFields(good *letter, names []string) (all []spoiled) {
	for _, name := range names {
		old := good.header.Get(name)
		with := func(how string, values ...string) {
			if len(values) == 1 && values[0] == old {
				return
			}
			l := *good
			l.header = good.header.Clone()
			l.header[http.CanonicalHeaderKey(name)] = values
			if len(values) == 0 {
				l.header.Del(name)
			}
			all = append(all, spoiled{name + ": " + how, &l})
		}
		with("left out")
		with("empty", "")
		with("twice", old, old)
		with("twice, joined", old+", "+old)
		with("cut", old[:len(old)-1])
		with("longer", old+"0")
		with("upper case", strings.ToUpper(old))
		for i := range old {
			value := []byte(old)
			if value[i]++; value[i] > '~' {
				value[i] = '!'
			}
			with(fmt.Sprintf("character %d", i), string(value))
		}
	}
	return all
}

// boundHeaderNames are the headers that the envelope binds.
var boundHeaderNames = []string{
	api.HeaderModel, api.HeaderTenant, api.HeaderAffinity, api.HeaderSize, api.HeaderRequestID, api.HeaderRecipients,
}

// intruder sends what it likes, past Envoy and past parents too, and knows what
// has run.
type intruder struct {
	*forger
	c      *cluster
	engine *countingEngine
	ran    atomic.Int64 // requests that reached the engine
}

// inside is the same one at an enclave's own port, where a host is that has parted
// with its parent.
func (i *intruder) inside(instance string) *forger {
	GinkgoHelper()
	socket := filepath.Join(i.c.stateDir, "run", instance+".vsock")
	direct := i.at("http://enclave")
	direct.http = dialOnly(func(ctx context.Context) (net.Conn, error) { return vsock.Dial(ctx, "unix:"+socket+":5000") })
	return direct
}

// dialOnly is for who speaks to one address whatever the URL says.
func dialOnly(dial func(context.Context) (net.Conn, error)) *http.Client {
	transport := &http.Transport{
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		MaxIdleConnsPerHost: 16,
	}
	DeferCleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// good is a sealed request of several chunks, to all instances, with every header
// that can be bound.
func (i *intruder) good() (*seal.Sealed, *letter) {
	GinkgoHelper()
	sealed := i.seal(i.chat(strings.Repeat("hello ", 3000)), func(r *seal.Request) { r.Size = "8192/1024" })
	return sealed, i.letter(sealed)
}

// allRefused sends every one, and wants each refused, in clear, before the engine
// has heard of it; and the request that they were made of still to be served.
func (i *intruder) allRefused(ctx context.Context, at *forger, sealed *seal.Sealed, good *letter, all []spoiled) {
	GinkgoHelper()
	before := i.ran.Load()
	for _, s := range all {
		r := at.send(ctx, s.letter)
		Expect(r.status).To(BeNumerically(">=", 400), "%s: %s", s.what, r.body)
		Expect(r.status).NotTo(Equal(http.StatusInternalServerError), "%s: %s", s.what, r.body)
	}
	Expect(i.ran.Load()).To(Equal(before), "the engine has heard of one")
	status, body := at.send(ctx, good).opened(sealed)
	Expect(status).To(Equal(http.StatusOK), "%s", body)
	Expect(i.ran.Load()).To(Equal(before + 1))
}

var _ = Describe("Somebody who forges requests", Ordered, Label("threats"), func() {
	i := &intruder{}
	BeforeAll(func(ctx SpecContext) {
		i.engine = newCountingEngine(&i.ran)
		i.c = startCluster("--regions", "use1", "--instances", "2", "--engine-url", i.engine.server.URL, "--model-name", "told", "--ask=false")
		i.forger = i.c.newForger(ctx)
		Expect(i.recipients).To(HaveLen(2))
	})

	It("is refused by the enclave for every change of one field of an envelope", func(ctx SpecContext) {
		sealed, good := i.good()
		all := spoiledBodies(good)
		Expect(len(all)).To(BeNumerically(">", 5000))
		i.allRefused(ctx, i.inside("use1-0"), sealed, good, all)
		AddReportEntry("mutations", fmt.Sprintf("%d changes of one of %d fields: each refused", len(all), len(partsOf(good.body))))
	}, NodeTimeout(2*time.Minute))

	It("is refused by the enclave for a change of any field of an envelope by a data key of KMS", func(ctx SpecContext) {
		key := i.c.kmsKey()
		dataKey := func(r *seal.Request) {
			GinkgoHelper()
			plaintext, ciphertext, err := key.Generate(ctx, seal.EncryptionContext(r.RequestID, r.Tenant))
			Expect(err).NotTo(HaveOccurred())
			r.DataKey = &seal.DataKey{Plaintext: plaintext, Ciphertext: ciphertext}
		}
		sealed := i.seal(i.chat("hello"), dataKey)
		good := i.letter(sealed)
		// Each that is well formed is a call of KMS: of what is long, the first byte only.
		all := slices.DeleteFunc(spoiledBodies(good), func(s spoiled) bool {
			_, how, _ := strings.Cut(s.what, ": ")
			return strings.HasPrefix(how, "byte ") && how != "byte 0"
		})
		Expect(len(all)).To(BeNumerically(">", 1000))
		i.allRefused(ctx, i.inside("use1-0"), sealed, good, all)
	}, NodeTimeout(2*time.Minute))

	It("is refused by the enclave for every change of one bound header", func(ctx SpecContext) {
		sealed, good := i.good()
		all := spoiledHeaderFields(good, boundHeaderNames)
		Expect(len(all)).To(BeNumerically(">", 100))
		i.allRefused(ctx, i.inside("use1-0"), sealed, good, all)
	}, NodeTimeout(time.Minute))

	It("is refused by the front door for every change of one header that a request has", func(ctx SpecContext) {
		sealed, good := i.good()
		names := slices.Sorted(maps.Keys(good.header))
		Expect(names).To(ContainElements("Authorization", "Content-Type", api.HeaderTenant))
		i.allRefused(ctx, i.forger, sealed, good, spoiledHeaderFields(good, names))
	}, NodeTimeout(time.Minute))

	It("reaches no cache of another tenant's by naming it", func(ctx SpecContext) {
		other := i.as(i.c.tenants("add", "other"))
		i.c.signTenants()
		Eventually(ctx, func() string { return other.outcome(ctx) }, "20s", "50ms").Should(HavePrefix("127.0.0.1:"))
		enclave := i.inside("use1-0").as(other.key.Text())
		Eventually(ctx, func() string { return enclave.outcome(ctx) }, "20s", "50ms").Should(BeEmpty(), "served, and by no Envoy")
		before := i.ran.Load()

		By("its own request, and the other's name in the header")
		l := other.letter(other.seal(other.chat("hello"), nil))
		l.header.Set(api.HeaderTenant, i.key.Tenant())
		Expect(api.ParseError(0, other.send(ctx, l).body).Code).To(Equal("invalid_api_key"), "Envoy goes by the token")
		Expect(api.ParseError(0, enclave.send(ctx, l).body).Code).To(Equal("cannot_open"), "the enclave by what is bound")

		By("a request sealed in the other's name, with its own credential and cache secret")
		for _, change := range []func(*seal.Request){
			func(r *seal.Request) { r.Tenant = i.key.Tenant() },
			func(r *seal.Request) { r.Tenant, r.Payload.CacheSecret = i.key.Tenant(), i.key.CacheSecret() },
		} {
			sealed := other.seal(other.chat("hello"), change)
			Expect(enclave.outcomeOf(enclave.send(ctx, other.letter(sealed)), sealed)).To(Equal("sealed invalid_api_key"))
		}
		Expect(i.ran.Load()).To(Equal(before), "the engine, whose cache it is, was not asked")
	}, NodeTimeout(time.Minute))

	describeReplays(i)
})

// kmsKey is the tenant's key in the cluster's KMS.
func (c *cluster) kmsKey() *kmskey.Key {
	GinkgoHelper()
	content, err := os.ReadFile(filepath.Join(c.stateDir, "kms.env"))
	Expect(err).NotTo(HaveOccurred())
	env := map[string]string{}
	for line := range strings.Lines(string(content)) {
		name, value, _ := strings.Cut(strings.TrimSpace(strings.TrimPrefix(line, "export ")), "=")
		env[name] = strings.Trim(value, "'")
	}
	transport := &http.Transport{TLSClientConfig: c.tls()}
	DeferCleanup(transport.CloseIdleConnections)
	key, err := kmskey.New(kms.New(kms.Options{
		Region: strings.Split(env["MRGC_KMS_KEY"], ":")[3], BaseEndpoint: aws.String(env["AWS_ENDPOINT_URL_KMS"]),
		Credentials: credentials.NewStaticCredentialsProvider(env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"], env["AWS_SESSION_TOKEN"]),
		HTTPClient:  &http.Client{Transport: transport},
	}), env["MRGC_KMS_KEY"])
	Expect(err).NotTo(HaveOccurred())
	return key
}

// countingEngine counts what reaches it, by the name that a prompt begins with.
type countingEngine struct {
	*toldEngine
	runs runs
}

func newCountingEngine(ran *atomic.Int64) *countingEngine {
	e := &countingEngine{toldEngine: newToldEngine()}
	e.does(func(w http.ResponseWriter, r *http.Request) {
		ran.Add(1)
		body, _ := io.ReadAll(r.Body)
		var asked struct {
			Messages []struct{ Content string }
		}
		_ = json.Unmarshal(body, &asked) // the enclave has written it
		if len(asked.Messages) > 0 {
			e.runs.add(asked.Messages[0].Content)
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"object":"chat.completion","choices":[]}`)
	})
	return e
}
