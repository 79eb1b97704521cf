package main

import (
	"encoding/json"
	"os"
	"path/filepath"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/client"
	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/standin/softkms"
)

var _ = Describe("mrgc releases", func() {
	var dir string
	path := func(name string) string { return filepath.Join(dir, name) }
	sign := func(more ...string) result {
		return mrgc(append([]string{"releases", "sign", "--key", path("r.key"), "--releases", path("releases.json"), "--out", path("signed.json")}, more...)...)
	}
	verify := func(key string) result { return mrgc("releases", "verify", "--key", path(key), path("signed.json")) }
	write := func(versions ...uint64) {
		GinkgoHelper()
		var releases []attest.Release
		for _, v := range versions {
			r := attest.Release{Version: v, Name: "test", PCRs: attest.PCRs{}}
			for i := range 4 {
				r.PCRs[i] = attest.ExtendedPCR([]byte{byte(v), byte(i)})
			}
			releases = append(releases, r)
		}
		content, err := json.Marshal(releases)
		Expect(err).NotTo(HaveOccurred())
		Expect(os.WriteFile(path("releases.json"), content, 0o600)).To(Succeed())
	}

	BeforeEach(func() {
		dir = GinkgoT().TempDir()
		for _, name := range []string{"r", "other"} {
			Expect(mrgc("releases", "keygen", "--out", path(name)).err).NotTo(HaveOccurred())
		}
		write(6, 7)
	})

	It("signs a manifest that says what is trusted, and whose versions rise", func() {
		Expect(sign("--min-version", "7").stdout).To(ContainSubstring("version 1 is in"))
		Expect(verify("r.pub").stdout).To(And(ContainSubstring("version 1, minimum release 7"),
			MatchRegexp(`6 +test +too old +[0-9a-f]{96}`), MatchRegexp(`7 +test +trusted +[0-9a-f]{96}`)))
		write(7, 8)
		Expect(sign().err).NotTo(HaveOccurred())
		Expect(verify("r.pub").stdout).To(ContainSubstring("version 2, minimum release 7"))
	})

	It("shows nothing that another key has signed", func() {
		Expect(sign().err).NotTo(HaveOccurred())
		got := verify("other.pub")
		Expect(got.err).To(MatchError(ContainSubstring("no signature is by a key that is trusted here")))
		Expect(got.stdout).To(BeEmpty())
	})

	It("does not lower the minimum, or replace what another key has signed", func() {
		Expect(sign("--min-version", "7").err).NotTo(HaveOccurred())
		Expect(sign("--min-version", "6").err).To(MatchError(ContainSubstring("it never falls")))
		Expect(sign("--key", path("other.key")).err).To(MatchError(ContainSubstring("which would be replaced")))
		Expect(verify("r.pub").stdout).To(ContainSubstring("version 1, minimum release 7"))
		Expect(sign("--min-version", "8").err).To(MatchError(ContainSubstring("above every release")))
	})

	It("is what a tenant's client takes", func() {
		Expect(sign("--min-version", "7").err).NotTo(HaveOccurred())
		o := connectOptions{releases: path("signed.json"), releasesKey: path("r.pub")}
		var policy client.Policy
		Expect(o.readReleases(&policy)).To(Succeed())
		Expect(policy.Releases).To(HaveLen(2))
		Expect(policy.MinVersion).To(BeEquivalentTo(7))
		policy = client.Policy{MinVersion: 9}
		Expect(o.readReleases(&policy)).To(Succeed())
		Expect(policy.MinVersion).To(BeEquivalentTo(9), "the tenant demands more")

		o.releasesKey = path("other.pub")
		Expect(o.readReleases(&policy)).To(MatchError(ContainSubstring("no signature")))
		o.releases, o.releasesKey = path("releases.json"), path("r.pub")
		Expect(o.readReleases(&policy)).To(HaveOccurred(), "what is not signed does not pass for a manifest")
		o.releases, o.releasesKey = path("signed.json"), ""
		Expect(o.readReleases(&policy)).To(HaveOccurred(), "a manifest is not taken unverified")
	})

	Describe("mrgc keys policy", func() {
		policy := func(more ...string) result {
			return mrgc(append([]string{
				"keys", "policy", "--releases", path("signed.json"), "--releases-key", path("r.pub"), "--tenant", "acme",
				"--admin", "arn:aws:iam::111122223333:role/security", "--client", "arn:aws:iam::111122223333:role/app",
				"--cluster-role", "arn:aws:iam::444455556666:role/mrgc-gpu-instance",
			}, more...)...)
		}

		It("writes a policy that KMS takes, with the trusted releases' registers and no others'", func() {
			Expect(sign("--min-version", "7").err).NotTo(HaveOccurred())
			got := policy()
			Expect(got.err).NotTo(HaveOccurred())
			service, err := softkms.New(softkms.Config{Regions: []string{"us-east-1"}})
			Expect(err).NotTo(HaveOccurred())
			_, err = service.CreateKey("mrk-1234", []byte(got.stdout))
			Expect(err).NotTo(HaveOccurred())
			for i := range 4 {
				Expect(got.stdout).To(ContainSubstring(attest.ExtendedPCR([]byte{7, byte(i)}).String()))
				Expect(got.stdout).NotTo(ContainSubstring(attest.ExtendedPCR([]byte{6, byte(i)}).String()))
			}
		})

		It("writes the policy of a fleet's key, too, and not both at once", func() {
			Expect(sign("--min-version", "7").err).NotTo(HaveOccurred())
			fleet := []string{
				"keys", "policy", "--releases", path("signed.json"), "--releases-key", path("r.pub"), "--fleet", "prod",
				"--admin", "arn:aws:iam::444455556666:role/security", "--cluster-role", "arn:aws:iam::444455556666:role/mrgc-gpu-instance",
			}
			got := mrgc(fleet...)
			Expect(got.err).NotTo(HaveOccurred())
			service, err := softkms.New(softkms.Config{Regions: []string{"us-east-1"}})
			Expect(err).NotTo(HaveOccurred())
			_, err = service.CreateKey("mrk-1234", []byte(got.stdout))
			Expect(err).NotTo(HaveOccurred())
			Expect(got.stdout).To(And(ContainSubstring("kms:EncryptionContext:mrgc:fleet"), ContainSubstring(attest.ExtendedPCR([]byte{7, 0}).String()),
				Not(ContainSubstring(attest.ExtendedPCR([]byte{6, 0}).String()))))
			Expect(policy("--fleet", "prod").err).To(HaveOccurred())
			Expect(mrgc(append(fleet, "--client", "arn:aws:iam::111122223333:role/app")...).err).To(HaveOccurred())
		})

		It("writes nothing by a manifest that is not genuine, or for who is nobody", func() {
			Expect(sign().err).NotTo(HaveOccurred())
			for _, wrong := range [][]string{{"--releases-key", path("other.pub")}, {"--releases", path("releases.json")}, {"--client", "*"}} {
				got := policy(wrong...)
				Expect(got.err).To(HaveOccurred())
				Expect(got.stdout).To(BeEmpty())
			}
		})
	})
})
