package release_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"strings"
	"testing"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/dsse"
	"github.com/mrgc/mrgc/internal/release"
)

func TestRelease(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "internal/release")
}

func newKey(seed byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
}

func public(key ed25519.PrivateKey) []ed25519.PublicKey {
	return []ed25519.PublicKey{key.Public().(ed25519.PublicKey)}
}

// built is a release whose registers follow from its version.
func built(version uint64) attest.Release {
	pcrs := attest.PCRs{}
	for i := range 4 {
		pcrs[i] = attest.ExtendedPCR([]byte{byte(version), byte(i)})
	}
	return attest.Release{Version: version, Name: "test", PCRs: pcrs}
}

func manifest() *release.Manifest {
	return &release.Manifest{Version: 3, MinVersion: 7, Releases: []attest.Release{built(6), built(7), built(8)}}
}

var _ = Describe("A manifest", func() {
	It("is read as it was signed", func() {
		file, err := release.Sign(newKey(1), manifest())
		Expect(err).NotTo(HaveOccurred())
		Expect(release.Verify(public(newKey(1)), file)).To(Equal(manifest()))
	})

	It("trusts what is not below its minimum", func() {
		Expect(manifest().Trusted()).To(Equal([]attest.Release{built(7), built(8)}))
	})

	It("is not one that somebody else has signed, or that is a list of something else", func() {
		file, err := release.Sign(newKey(1), manifest())
		Expect(err).NotTo(HaveOccurred())
		_, err = release.Verify(public(newKey(2)), file)
		Expect(err).To(MatchError(ContainSubstring("no signature is by a key that is trusted here")))
		other, err := dsse.Sign(newKey(1), "application/vnd.mrgc.tenants+json", []byte(`{}`))
		Expect(err).NotTo(HaveOccurred())
		_, err = release.Verify(public(newKey(1)), other)
		Expect(err).To(MatchError(ContainSubstring("the type is")))
	})

	DescribeTable("is not signed", func(reason string, change func(*release.Manifest)) {
		m := manifest()
		_, err := release.Sign(newKey(1), m)
		Expect(err).NotTo(HaveOccurred())
		change(m)
		_, err = release.Sign(newKey(1), m)
		Expect(err).To(MatchError(ContainSubstring(reason)))
	},
		Entry("without a version", "no version", func(m *release.Manifest) { m.Version = 0 }),
		Entry("without a release", "no release", func(m *release.Manifest) { m.Releases = []attest.Release{} }),
		Entry("when it trusts none of them", "above every release", func(m *release.Manifest) { m.MinVersion = 9 }),
		Entry("with a release that pins no image", "PCR0 is missing", func(m *release.Manifest) { delete(m.Releases[1].PCRs, 0) }),
		Entry("with a release of debug mode", "PCR2 is all zero", func(m *release.Manifest) { m.Releases[1].PCRs[2] = make([]byte, 48) }),
	)

	DescribeTable("is read strictly", func(payload, reason string) {
		image := strings.Repeat("ab", 48)
		payload = strings.ReplaceAll(payload, "RELEASES", `[{"version":1,"name":"a","pcrs":{"0":"`+image+`","1":"`+image+`","2":"`+image+`"}}]`)
		file, err := dsse.Sign(newKey(1), release.PayloadType, []byte(payload))
		Expect(err).NotTo(HaveOccurred())
		_, err = release.Verify(public(newKey(1)), file)
		if reason == "" {
			Expect(err).NotTo(HaveOccurred())
			return
		}
		Expect(err).To(MatchError(ContainSubstring(reason)))
	},
		Entry("and without a change", `{"version":1,"min_version":1,"releases":RELEASES}`, ""),
		Entry("a field that is not known here", `{"version":1,"min_version":1,"releases":RELEASES,"x":1}`, "unknown field"),
		Entry("data after it", `{"version":1,"min_version":1,"releases":RELEASES} 1`, "after the end"),
		Entry("no releases", `{"version":1,"min_version":1}`, "releases: EOF"),
		Entry("a negative version", `{"version":-1,"min_version":1,"releases":RELEASES}`, "cannot unmarshal"),
	)

	DescribeTable("follows an older one", func(version, minVersion uint64, reason string) {
		m := manifest()
		m.Version, m.MinVersion = version, minVersion
		err := m.Follows(manifest())
		if reason == "" {
			Expect(err).NotTo(HaveOccurred())
			return
		}
		Expect(err).To(MatchError(ContainSubstring(reason)))
	},
		Entry("that it is newer than", uint64(4), uint64(7), ""),
		Entry("with a higher minimum", uint64(4), uint64(8), ""),
		Entry("but not one of its version", uint64(3), uint64(7), "version 3, and 3 has been seen"),
		Entry("but not with a lower minimum", uint64(4), uint64(6), "it never falls"),
	)

	It("follows nothing", func() { Expect(manifest().Follows(nil)).To(Succeed()) })
})

// FuzzVerify looks for a payload that is taken and means something else when it
// is signed again.
func FuzzVerify(f *testing.F) {
	seed, err := json.Marshal(map[string]any{"version": 1, "min_version": 1, "releases": []attest.Release{built(1)}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, payload []byte) {
		file, err := dsse.Sign(newKey(1), release.PayloadType, payload)
		if err != nil {
			t.Fatal(err)
		}
		m, err := release.Verify(public(newKey(1)), file)
		if err != nil {
			return
		}
		again, err := release.Sign(newKey(1), m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := release.Verify(public(newKey(1)), again); err != nil {
			t.Fatal(err)
		}
	})
}
