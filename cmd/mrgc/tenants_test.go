package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/credential"
	"github.com/mrgc/mrgc/internal/dsse"
	"github.com/mrgc/mrgc/internal/tenant"
)

var _ = Describe("mrgc tenants", func() {
	var dir string
	tenants := func(args ...string) result {
		return mrgc(append([]string{"tenants", "--file", filepath.Join(dir, "tenants.json")}, args...)...)
	}
	sign := func(more ...string) result {
		return tenants(append([]string{"sign", "--key", filepath.Join(dir, "s.key"), "--out", filepath.Join(dir, "signed.json")}, more...)...)
	}
	add := func(args ...string) credential.Key {
		GinkgoHelper()
		got := tenants(append([]string{"add"}, args...)...)
		Expect(got.err).NotTo(HaveOccurred())
		Expect(got.stdout).To(BeEmpty())
		key, err := credential.Parse(strings.TrimSuffix(got.stderr, "\n"))
		Expect(err).NotTo(HaveOccurred())
		return key
	}
	// taken is what the cluster makes of what is signed.
	taken := func() *tenant.Set {
		GinkgoHelper()
		public, err := os.ReadFile(filepath.Join(dir, "s.pub"))
		Expect(err).NotTo(HaveOccurred())
		keys, err := dsse.ParseVerificationKeys(public)
		Expect(err).NotTo(HaveOccurred())
		keeper, err := tenant.NewKeeper(keys...)
		Expect(err).NotTo(HaveOccurred())
		file, err := os.ReadFile(filepath.Join(dir, "signed.json"))
		Expect(err).NotTo(HaveOccurred())
		Expect(keeper.Offer(file, time.Now())).To(Succeed())
		return keeper.Set()
	}
	admits := func(key credential.Key) bool {
		name := key.Tenant()
		_, edge := taken().AdmitToEdge(name, key.EdgeToken(), time.Now())
		_, inside := taken().AdmitToEnclave(name, key.EnclaveToken(), time.Now())
		Expect(edge == nil).To(Equal(inside == nil))
		return edge == nil
	}

	BeforeEach(func() {
		dir = GinkgoT().TempDir()
		Expect(tenants("keygen", "--out", filepath.Join(dir, "s")).err).NotTo(HaveOccurred())
	})

	It("makes a list that the cluster takes, and of which it holds no key", func() {
		acme := add("acme", "--regions", "use1,use2", "--models", "m")
		umbra := add("umbra")
		Expect(sign().stdout).To(ContainSubstring("version 1 is in"))
		Expect(admits(acme)).To(BeTrue())
		Expect(admits(umbra)).To(BeTrue())
		rules, err := taken().Find("acme", time.Now())
		Expect(err).NotTo(HaveOccurred())
		Expect(rules.Models).To(Equal(tenant.Names{"m"}))
		Expect(rules.Regions).To(Equal(tenant.Names{"use1", "use2"}))
		Expect(taken().Expires()).To(BeTemporally("~", time.Now().Add(7*24*time.Hour), time.Minute))
		for _, file := range []string{"tenants.json", "signed.json"} {
			content, err := os.ReadFile(filepath.Join(dir, file))
			Expect(err).NotTo(HaveOccurred())
			for _, hidden := range []string{acme.Text(), string(acme.EdgeToken()), string(acme.EnclaveToken())} {
				Expect(string(content)).NotTo(ContainSubstring(hidden))
			}
		}
		info, err := os.Stat(filepath.Join(dir, "s.key"))
		Expect(err).NotTo(HaveOccurred())
		Expect(info.Mode().Perm()).To(BeEquivalentTo(0o600))
	})

	It("revokes a tenant with the next signature, for good", func() {
		acme, umbra := add("acme"), add("umbra")
		sign()
		Expect(tenants("revoke", "acme").err).NotTo(HaveOccurred())
		Expect(admits(acme)).To(BeTrue(), "nothing is signed yet")
		sign()
		Expect(taken().Version()).To(BeEquivalentTo(2))
		Expect(admits(acme)).To(BeFalse())
		Expect(admits(umbra)).To(BeTrue())
		Expect(tenants("add", "acme").err).To(MatchError(ContainSubstring("there already")))
		Expect(tenants("add", "acme", "--another-key").err).To(MatchError(ContainSubstring("revoked")))
	})

	It("replaces a key without a gap", func() {
		old := add("acme")
		fresh := add("acme", "--another-key")
		sign()
		Expect([]bool{admits(old), admits(fresh)}).To(Equal([]bool{true, true}))
		Expect(tenants("revoke", "acme", "--old-keys").err).NotTo(HaveOccurred())
		sign()
		Expect([]bool{admits(old), admits(fresh)}).To(Equal([]bool{false, true}))
	})

	It("names a tenant by its certificates, too, or by nothing else", func() {
		const agent = "uri:spiffe://acme.example/agent"
		both := add("acme", "--san", agent, "--san", "dns:acme.example")
		only := add("umbra", "--san", "dns:umbra.example", "--certificate-only")
		sign()
		Expect(admits(both)).To(BeTrue())
		now := time.Now()
		_, err := taken().AdmitCertificate("acme", agent, now)
		Expect(err).NotTo(HaveOccurred())
		_, err = taken().AdmitCertificate("umbra", "dns:umbra.example", now)
		Expect(err).NotTo(HaveOccurred())
		_, err = taken().AdmitToEdge("umbra", only.EdgeToken(), now)
		Expect(err).To(MatchError(tenant.ErrUnknown))
		_, err = taken().AdmitToEnclave("umbra", only.EnclaveToken(), now)
		Expect(err).NotTo(HaveOccurred())
		Expect(tenants("list").stdout).To(And(ContainSubstring(agent+",dns:acme.example  "), ContainSubstring("dns:umbra.example only  ")))

		By("another key, and then only that")
		fresh := add("umbra", "--another-key")
		Expect(tenants("revoke", "umbra", "--old-keys").err).NotTo(HaveOccurred())
		Expect(tenants("revoke", "acme", "--san", agent).err).NotTo(HaveOccurred())
		Expect(tenants("revoke", "umbra", "--san", "dns:umbra.example").err).To(MatchError(ContainSubstring("0 edge tokens")), "nothing would be left to know it by")
		sign()
		_, err = taken().AdmitToEdge("umbra", fresh.EdgeToken(), now)
		Expect(err).To(MatchError(tenant.ErrUnknown))
		_, err = taken().AdmitToEnclave("umbra", fresh.EnclaveToken(), now)
		Expect(err).NotTo(HaveOccurred())
		_, err = taken().AdmitToEnclave("umbra", only.EnclaveToken(), now)
		Expect(err).To(MatchError(tenant.ErrUnknown))
		_, err = taken().AdmitCertificate("acme", agent, now)
		Expect(err).To(MatchError(tenant.ErrUnknown))
	})

	It("lists tenants for people and for programs", func() {
		add("acme", "--regions", "use1", "--requests-per-second", "5", "--tokens-per-minute", "600000", "--weight", "3")
		add("umbra", "--models", "")
		tenants("revoke", "umbra")
		Expect(tenants("list").stdout).To(HavePrefix("never signed\n"))
		sign()
		got := tenants("list")
		Expect(got.err).NotTo(HaveOccurred())
		Expect(got.stdout).To(HavePrefix("version 1, expires "))
		Expect(strings.Split(got.stdout, "\n")[1:]).To(Equal([]string{
			"TENANT  STATE    KEYS  CERTIFICATES  MODELS  REGIONS  REQUESTS/S  TOKENS/MIN  WEIGHT",
			"acme    active   1     none          all     use1     5           600000      3",
			"umbra   revoked  1     none          none    all      any         any         1",
			"",
		}))
		signed := tenants("list", "-o", "json", "--signed", filepath.Join(dir, "signed.json"), "--verify-key", filepath.Join(dir, "s.pub"))
		Expect(signed.err).NotTo(HaveOccurred())
		var l tenant.List
		Expect(json.Unmarshal([]byte(signed.stdout), &l)).To(Succeed())
		Expect(l.Tenants).To(HaveLen(2))
		Expect(l.Tenants[1].Models).To(Equal(tenant.Names{}), "none is not all")
		Expect(l.Tenants[0].Limits).To(Equal(tenant.Limits{RequestsPerSecond: 5, TokensPerMinute: 600_000, Weight: 3}))

		Expect(mrgc("tenants", "keygen", "--out", filepath.Join(dir, "other")).err).NotTo(HaveOccurred())
		forged := tenants("list", "--signed", filepath.Join(dir, "signed.json"), "--verify-key", filepath.Join(dir, "other.pub"))
		Expect(forged.err).To(MatchError(ContainSubstring("no signature is by a key that is trusted here")))
	})

	DescribeTable("refuses", func(reason string, args ...string) {
		add("acme")
		before, err := os.ReadFile(filepath.Join(dir, "tenants.json"))
		Expect(err).NotTo(HaveOccurred())
		for i, arg := range args {
			args[i] = strings.ReplaceAll(arg, "DIR", dir)
		}
		got := tenants(args...)
		Expect(got.err).To(MatchError(ContainSubstring(reason)))
		Expect(got.stdout + got.stderr).To(BeEmpty())
		Expect(os.ReadFile(filepath.Join(dir, "tenants.json"))).To(Equal(before))
	},
		Entry("a name that is none", "tenant name", "add", "Acme Inc"),
		Entry("a name that is taken", "there already", "add", "acme"),
		Entry("another key of nobody", "there is no tenant", "add", "umbra", "--another-key"),
		Entry("rules with another key", "none of the others can be", "add", "acme", "--another-key", "--regions", "use1"),
		Entry("a limit with another key", "none of the others can be", "add", "acme", "--another-key", "--weight", "2"),
		Entry("a limit that is none", "requests_per_second is -1", "add", "umbra", "--requests-per-second", "-1"),
		Entry("a certificate's name that is none", "sans[0]", "add", "umbra", "--san", "umbra.example"),
		Entry("a certificate alone that has no name", "needs --san", "add", "umbra", "--certificate-only"),
		Entry("to revoke a name that nobody has", "has no dns:x.example", "revoke", "acme", "--san", "dns:x.example"),
		Entry("a region twice", "want a name, once", "add", "umbra", "--regions", "use1,use1"),
		Entry("to revoke nobody", "there is no tenant", "revoke", "umbra"),
		Entry("to sign with what verifies", "not PEM with a PRIVATE KEY", "sign", "--key", "DIR/s.pub"),
		Entry("to sign for no time", "--valid 0s", "sign", "--key", "DIR/s.key", "--valid", "0s"),
		Entry("to write over a key", "there already", "keygen", "--out", "DIR/s"),
		Entry("another form", "want table or json", "list", "-o", "yaml"),
	)
})
