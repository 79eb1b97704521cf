package follow_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gbytes"

	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/dsse"
	"github.com/mrgc/mrgc/internal/release"
	"github.com/mrgc/mrgc/internal/release/follow"
)

func TestFollow(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "internal/release/follow")
}

func newKey(seed byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
}

var _ = Describe("A file", func() {
	var dir string
	path := func(name string) string { return filepath.Join(dir, name) }
	sign := func(key ed25519.PrivateKey, version, minVersion uint64) {
		GinkgoHelper()
		r := attest.Release{Version: 9, Name: "test", PCRs: attest.PCRs{}}
		for i := range 3 {
			r.PCRs[i] = attest.ExtendedPCR([]byte{byte(i)})
		}
		file, err := release.Sign(key, &release.Manifest{Version: version, MinVersion: minVersion, Releases: []attest.Release{r}})
		Expect(err).NotTo(HaveOccurred())
		Expect(os.WriteFile(path("new"), file, 0o600)).To(Succeed())
		Expect(os.Rename(path("new"), path("releases"))).To(Succeed())
	}
	BeforeEach(func() {
		dir = GinkgoT().TempDir()
		_, public, err := dsse.MarshalKey(newKey(1))
		Expect(err).NotTo(HaveOccurred())
		Expect(os.WriteFile(path("key"), public, 0o600)).To(Succeed())
		sign(newKey(1), 2, 5)
	})

	It("is followed, and only forwards", func(ctx SpecContext) {
		log := gbytes.NewBuffer()
		file, err := follow.Open(path("releases"), path("key"), slog.New(slog.NewTextHandler(log, nil)))
		Expect(err).NotTo(HaveOccurred())
		Expect(file.Manifest()).To(And(HaveField("Version", uint64(2)), HaveField("MinVersion", uint64(5))))
		var told atomic.Uint64
		file.Changed = func(m *release.Manifest) { told.Store(m.Version) }
		following, stop := context.WithCancel(ctx)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			file.Run(following)
		}()
		DeferCleanup(func() {
			stop()
			Eventually(ended).Should(BeClosed())
		})
		sign(newKey(1), 3, 6)
		Eventually(file.Manifest, "10s").Should(And(HaveField("Version", uint64(3)), HaveField("MinVersion", uint64(6))))
		Eventually(told.Load, "10s").Should(BeEquivalentTo(3))
		for _, bad := range []struct {
			key                 ed25519.PrivateKey
			version, minVersion uint64
			reason              string
		}{{newKey(2), 4, 6, "no signature"}, {newKey(1), 2, 6, "version 2, and 3 has been seen"}, {newKey(1), 4, 5, "it never falls"}, {newKey(1), 3, 7, "version 3, and 3"}} {
			sign(bad.key, bad.version, bad.minVersion)
			Eventually(log, "10s").Should(gbytes.Say(bad.reason))
			Expect(file.Manifest().Version).To(BeEquivalentTo(3))
			Expect(told.Load()).To(BeEquivalentTo(3))
		}
		Expect(os.Remove(path("releases"))).To(Succeed())
		Eventually(log, "10s").Should(gbytes.Say("no such file"))
		sign(newKey(1), 4, 6)
		Eventually(file.Manifest, "10s").Should(HaveField("Version", uint64(4)))
	})

	It("must be good at the start", func() {
		log := slog.New(slog.DiscardHandler)
		for _, paths := range [][2]string{{"none", "key"}, {"releases", "none"}, {"key", "key"}, {"releases", "releases"}} {
			_, err := follow.Open(path(paths[0]), path(paths[1]), log)
			Expect(err).To(HaveOccurred(), "%v", paths)
		}
	})
})
