package enclave_test

import (
	"net/http"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/enclave"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/credential"
	"github.com/mrgc/mrgc/internal/seal"
	"github.com/mrgc/mrgc/internal/tenant/tenanttest"
)

// salts are those that the engine was asked under, in order.
func (r *running) salts() (all []string) {
	for _, c := range r.engine.calls() {
		all = append(all, c.Header.Get(api.HeaderCacheSalt))
	}
	return all
}

func cacheSecret(secret string) func(*seal.Request) {
	return func(req *seal.Request) { req.Payload.CacheSecret = []byte(secret) }
}

var _ = Describe("The salt of the engine's cache", func() {
	It("is one for what a tenant's key asks, whatever it asks", func() {
		r := start(says(`{}`))
		for _, body := range []string{chat, saying(`"something else"`)} {
			Expect(r.ask(body).err).NotTo(HaveOccurred())
		}
		salts := r.salts()
		Expect(salts[0]).To(HavePrefix("mrgc-salt-1-"))
		// vllm/entrypoints/generate/base/protocol.py, validate_cache_salt.
		Expect(len(salts[0])).To(BeNumerically("<=", 128))
		Expect(salts[0]).NotTo(ContainSubstring("/"), "nor @, \\ and NUL: vLLM refuses the request")
		Expect(salts).To(HaveEach(salts[0]))
	})

	It("is another for another cache secret, tenant, or enclave", func() {
		key, other := newAPIKey(), newAPIKey()
		r := start(says(`{}`))
		Expect(r.ask(chat, cacheSecret("a")).err).NotTo(HaveOccurred())
		Expect(r.ask(chat, cacheSecret("b")).err).NotTo(HaveOccurred())
		Expect(r.ask(chat, cacheSecret("")).err).NotTo(HaveOccurred())
		beside := startBeside(says(`{}`), func(c *enclave.Config) {
			c.Tenants = tenanttest.Keeper(GinkgoTB(), tenanttest.Tenant(tenant, "edge", string(key.EnclaveToken())), tenanttest.Tenant("other", "edge-2", string(other.EnclaveToken())))
		})
		as := func(name string, key credential.Key) func(*seal.Request) {
			return func(req *seal.Request) {
				req.Tenant, req.Payload.Credential, req.Payload.CacheSecret = name, key.EnclaveToken(), []byte("a")
			}
		}
		Expect(beside.ask(chat, as(tenant, key)).body).To(Equal("{}"))
		Expect(beside.ask(chat, as("other", other)).body).To(Equal("{}"))
		seen := map[string]bool{}
		for _, salt := range append(r.salts(), beside.salts()...) {
			Expect(seen).NotTo(HaveKey(salt))
			seen[salt] = true
		}
		Expect(seen).To(HaveLen(5))
	})

	It("is not the client's to choose: its own cache_salt never arrives, and separates its own requests alone", func() {
		r := start(says(`{}`))
		Expect(r.ask(chat).err).NotTo(HaveOccurred())
		stolen := r.salts()[0] // as if it had leaked
		Expect(r.ask(with(`"cache_salt":"`+stolen+`"`), cacheSecret("another")).err).NotTo(HaveOccurred())
		Expect(r.ask(with(`"cache_salt":"user-7"`)).err).NotTo(HaveOccurred())
		Expect(r.ask(with(`"cache_salt":"user-7"`)).err).NotTo(HaveOccurred())
		Expect(r.ask(with(`"cache_salt":null`)).err).NotTo(HaveOccurred())
		salts := r.salts()
		Expect(salts[1]).NotTo(Equal(stolen))
		Expect(salts[2]).To(And(Not(Equal(stolen)), Not(Equal(salts[1])), Not(ContainSubstring("user-7")), Equal(salts[3])))
		Expect(salts[4]).To(Equal(stolen), "of nobody's choice, that is: without one")
		for _, call := range r.engine.calls() {
			Expect(call.Body).NotTo(Or(ContainSubstring("cache_salt"), ContainSubstring("user-7"), ContainSubstring(stolen)))
		}
	})

	It("depends on each part, and on where each ends", func() {
		secret := [32]byte{1}
		part := rapid.SliceOfN(rapid.ByteRange(0, 2), 0, 4)
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			draw := func(name string) (string, [3]string) {
				parts := [3]string{string(part.Draw(t, name+" tenant")), string(part.Draw(t, name+" secret")), string(part.Draw(t, name+" own"))}
				text, _ := enclave.Salt(secret, parts[0], []byte(parts[1]), []byte(parts[2]))
				return text, parts
			}
			one, partsOfOne := draw("one")
			two, partsOfTwo := draw("two")
			if (one == two) != (partsOfOne == partsOfTwo) {
				t.Fatalf("%q gives %s and %q gives %s", partsOfOne, one, partsOfTwo, two)
			}
		})
	})

	// Computed by another implementation, of the derivation in docs/protocol.md.
	DescribeTable("is what the protocol says", func(own, text, id string) {
		var secret [32]byte
		for i := range secret {
			secret[i] = byte(i)
		}
		gotText, gotID := enclave.Salt(secret, "acme", []byte("the cache secret"), []byte(own))
		Expect(gotText).To(Equal(text))
		Expect(gotID.String()).To(Equal(id))
	},
		Entry("of the tenant", "", "mrgc-salt-1-I89NAAIPvtoymEYLsDRE_E-JHLeq_lbs7GSqP3HvWio", "2d6dafe026c612cde42f1000274111e3"),
		Entry("of a part of the tenant's requests", `"user-7"`, "mrgc-salt-1-Dn0FytRyx_f6vxD8REuJsGwogCI5TL30Yu65qaOllCM", "55bcb9f03fb6198438d725d877488fac"),
	)
})

var _ = Describe("A receipt's salt id", func() {
	receipt := func(r *running, a answer) seal.Receipt {
		GinkgoHelper()
		Expect(a.err).NotTo(HaveOccurred())
		keys, _ := r.recipients()
		receipt, err := keys[0].VerifyReceipt(a.end.Receipt)
		Expect(err).NotTo(HaveOccurred())
		return receipt
	}

	It("is one for one salt, and gives nothing of it away", func() {
		r := start(says(`{}`))
		first, again := receipt(r, r.ask(chat)), receipt(r, r.ask(saying(`"something else"`)))
		other := receipt(r, r.ask(chat, cacheSecret("another")))
		Expect(again.Enclave.SaltID).To(Equal(first.Enclave.SaltID))
		Expect(other.Enclave.SaltID).NotTo(Or(Equal(first.Enclave.SaltID), BeZero()))
		for _, salt := range r.salts() {
			Expect(salt).NotTo(ContainSubstring(first.Enclave.SaltID.String()[:8]))
		}
	})

	It("is none where the engine was not asked", func() {
		r := start(says(`{}`))
		Expect(receipt(r, r.ask(with(`"best_of":2`))).Enclave.SaltID).To(BeZero())
	})

	DescribeTable("stands beside what the guard says it has made of it", func(said, want string) {
		r := start(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(api.HeaderCache, said)
			says(`{}`)(w, nil)
		})
		Expect(receipt(r, r.ask(chat)).Host.Cache).To(Equal(want))
	},
		Entry("salt", "salt", "salt"), Entry("slots", "slots", "slots"), Entry("none", "none", "none"),
		Entry("nothing", "", ""), Entry("what is not known", "safe", ""), Entry("what no receipt holds", strings.Repeat("s", 300), ""),
	)
})
