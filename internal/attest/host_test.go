package attest_test

import (
	"crypto/x509"
	"encoding/json"
	"slices"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/attest"
)

// realHostPolicy accepts aws-nitrotpm-2026.cbor, at the time and with the nonce that
// it returns.
func realHostPolicy() (attest.HostPolicy, attest.Expected, time.Time) {
	host := attest.Host{Name: "aws-nitrotpm-2026", PCRs: attest.PCRs{
		4:  unhex("1a1f166e1995c1e1bfdf1c1d13b1ebc9d5d4e44397501655c911a2062d92063483ca9e17f0264efe336d4b61c5b98d1e"),
		7:  unhex("98441c7f7625d10058c47683aec486ce311c633235eb555593a7ee791121e3578ae72d04ecef661f272d59058b77af35"),
		12: make([]byte, 48),
	}}
	want := attest.Expected{Nonce: unhex("230af3f7c0ec43ccf99a4cab47ac61469a36ea74b1e79740fdf8ccfc8f56161a"), Region: "us-east-1"}
	return attest.HostPolicy{Roots: []*x509.Certificate{attest.AWSRoot()}, Hosts: []attest.Host{host}}, want, time.UnixMilli(1770113522437)
}

// newHostForge makes documents of a NitroTPM.
func newHostForge() *forge {
	f := newForge()
	f.payload["module_id"] = "i-0123456789abcdef0-tpm0000000000000000"
	f.payload["nitrotpm_pcrs"] = hostPCRs()
	delete(f.payload, "pcrs")
	return f
}

func hostPCRs() attest.PCRs {
	p := make(attest.PCRs)
	for i := range 24 {
		p[i] = attest.ExtendedPCR([]byte{byte(i)})
	}
	p[12] = make([]byte, 48)
	return p
}

func hostImage() attest.Host {
	p := hostPCRs()
	return attest.Host{Name: "engine", PCRs: attest.PCRs{4: p[4], 12: p[12]}}
}

// hostDocument makes the document and a policy that trusts it.
func (f *forge) hostDocument() ([]byte, attest.HostPolicy) {
	raw, policy := f.document()
	return raw, attest.HostPolicy{Roots: policy.Roots, Hosts: []attest.Host{hostImage()}}
}

var _ = Describe("VerifyHost", func() {
	It("takes AWS's document at its own time", func() {
		policy, want, at := realHostPolicy()
		host, err := attest.VerifyHost(vector("aws-nitrotpm-2026.cbor"), policy, want, at)
		Expect(err).NotTo(HaveOccurred())
		Expect(host.Name).To(Equal("aws-nitrotpm-2026"))
		_, err = attest.VerifyHost(vector("aws-nitrotpm-2026.cbor"), policy, want, at.Add(10*time.Minute))
		Expect(err).To(MatchError(ContainSubstring("10m0s old")))
	})

	It("refuses it when any byte was changed", func() {
		policy, want, at := realHostPolicy()
		raw := vector("aws-nitrotpm-2026.cbor")
		for i := 0; i < len(raw); i += 13 { // the fuzz test goes on from here
			changed := slices.Clone(raw)
			changed[i] ^= 1
			_, err := attest.VerifyHost(changed, policy, want, at)
			Expect(err).To(HaveOccurred(), "byte %d", i)
		}
	})

	It("says which image runs", func() {
		raw, policy := newHostForge().hostDocument()
		other := hostImage()
		other.Name, other.PCRs[4] = "another", attest.ExtendedPCR([]byte("another"))
		policy.Hosts = append([]attest.Host{other}, policy.Hosts...)
		host, err := attest.VerifyHost(raw, policy, expected(), signedAt)
		Expect(err).NotTo(HaveOccurred())
		Expect(host).To(Equal(hostImage()))
	})

	DescribeTable("refuses a host", func(change func(f *forge), reason string) {
		f := newHostForge()
		change(f)
		raw, policy := f.hostDocument()
		_, err := attest.VerifyHost(raw, policy, expected(), signedAt)
		Expect(err).To(MatchError(ContainSubstring(reason)))
	},
		Entry("of another image", func(f *forge) {
			p := hostPCRs()
			p[4] = attest.ExtendedPCR([]byte("another"))
			f.payload["nitrotpm_pcrs"] = p
		}, "match no trusted host image"),
		Entry("whose command line was overridden", func(f *forge) {
			p := hostPCRs()
			p[12] = attest.ExtendedPCR([]byte("init=/bin/sh"))
			f.payload["nitrotpm_pcrs"] = p
		}, "match no trusted host image"),
		Entry("that shows no PCR12", func(f *forge) {
			p := hostPCRs()
			delete(p, 12)
			f.payload["nitrotpm_pcrs"] = p
		}, "match no trusted host image"),
		Entry("that vouches for another key", func(f *forge) { f.payload["user_data"] = []byte("another") }, "user_data"),
		Entry("whose document is of before", func(f *forge) { f.payload["nonce"] = []byte("another") }, "nonce"),
		Entry("in another region", func(f *forge) { f.certs[regional].Subject.CommonName = "2f.eu-west-1.aws.nitro-enclaves" }, "region"),
		Entry("that shows an enclave's registers", func(f *forge) {
			f.payload["pcrs"] = f.payload["nitrotpm_pcrs"]
			delete(f.payload, "nitrotpm_pcrs")
		}, "an enclave's pcrs"),
		Entry("that shows both", func(f *forge) { f.payload["pcrs"] = pcrs() }, "an enclave's pcrs"),
		Entry("that shows both, the enclave's empty", func(f *forge) { f.payload["pcrs"] = attest.PCRs{} }, "an enclave's pcrs"),
		Entry("without registers", func(f *forge) { delete(f.payload, "nitrotpm_pcrs") }, "no pcrs"),
	)

	It("refuses who pins another root", func() {
		raw, policy := newHostForge().hostDocument()
		policy.Roots = []*x509.Certificate{attest.AWSRoot()}
		_, err := attest.VerifyHost(raw, policy, expected(), signedAt)
		Expect(err).To(MatchError(ContainSubstring("not one that the policy pins")))
	})

	It("is not what Verify takes", func() {
		f := newHostForge()
		f.payload["nitrotpm_pcrs"] = pcrs()
		raw, policy := f.document()
		_, err := attest.Verify(raw, policy, expected(), signedAt)
		Expect(err).To(MatchError(ContainSubstring("an instance's nitrotpm_pcrs")))
	})

	DescribeTable("takes no policy that passes what it should not", func(text, reason string) {
		_, err := attest.ParseHosts([]byte(text))
		Expect(err).To(MatchError(ContainSubstring(reason)))
	},
		Entry("nothing", `[]`, "no host image"),
		Entry("no name", `[{"pcrs":{}}]`, "name"),
		Entry("no image", hostsJSON(attest.PCRs{12: make([]byte, 48)}), "PCR4 is missing"),
		Entry("an image that nobody measured", hostsJSON(attest.PCRs{4: make([]byte, 48), 12: make([]byte, 48)}), "PCR4 is all zero"),
		Entry("any command line", hostsJSON(attest.PCRs{4: attest.ExtendedPCR(nil)}), "neither PCR12 nor PCR7"),
		Entry("a short register", hostsJSON(attest.PCRs{4: attest.ExtendedPCR(nil), 7: {1}}), "PCR7 has 1 bytes"),
		Entry("an unknown field", `[{"name":"a","pcrs":{},"version":1}]`, "unknown field"),
	)

	It("reads what it writes", func() {
		hosts, err := attest.ParseHosts([]byte(hostsJSON(hostImage().PCRs)))
		Expect(err).NotTo(HaveOccurred())
		Expect(hosts).To(Equal([]attest.Host{{Name: "engine", PCRs: hostImage().PCRs}}))
	})
})

func hostsJSON(pcrs attest.PCRs) string {
	text, err := json.Marshal([]attest.Host{{Name: "engine", PCRs: pcrs}})
	check(err)
	return string(text)
}

// FuzzVerifyHost checks that nothing but the one valid document passes.
func FuzzVerifyHost(f *testing.F) {
	valid := vector("aws-nitrotpm-2026.cbor")
	policy, want, at := realHostPolicy()
	f.Add(valid)
	f.Add(vector("aws-attestation-2023.cbor"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, err := attest.VerifyHost(raw, policy, want, at)
		if err == nil && !slices.Equal(raw, valid) && !slices.Equal(raw, append([]byte{0xd2}, valid...)) {
			t.Fatalf("accepted %x", raw)
		}
	})
}
