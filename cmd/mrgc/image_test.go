package main

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/eif"
	"github.com/mrgc/mrgc/standin/devca"
)

// static is the least that says of itself that it is a static program of Linux:
// an ELF header, without segments.
func static() []byte {
	header := make([]byte, 64)
	copy(header, "\x7fELF\x02\x01\x01")
	binary.LittleEndian.PutUint16(header[16:], 2)  // ET_EXEC
	binary.LittleEndian.PutUint16(header[18:], 62) // EM_X86_64
	binary.LittleEndian.PutUint32(header[20:], 1)
	binary.LittleEndian.PutUint16(header[52:], 64)
	return header
}

var _ = Describe("mrgc image", func() {
	var dir string
	path := func(name string) string { return filepath.Join(dir, name) }
	build := func(more ...string) result {
		return mrgc(append([]string{
			"image", "build", "--kernel", path("vmlinuz"), "--init", path("init"), "--enclave", path("enclave"), "--model", "m",
			"--tenants-key", path("k.pub"), "--identity-roots", path("ca.crt"), "--out", path("a.eif"), "--release", "7", "--name", "first",
		}, more...)...)
	}

	BeforeEach(func() {
		dir = GinkgoT().TempDir()
		ca, err := devca.New(time.Now())
		Expect(err).NotTo(HaveOccurred())
		Expect(mrgc("tenants", "keygen", "--out", path("k")).err).NotTo(HaveOccurred())
		Expect(os.Mkdir(path("modules"), 0o700)).To(Succeed())
		for name, content := range map[string][]byte{"vmlinuz": []byte("kernel"), "init": static(), "enclave": static(), "ca.crt": ca.RootPEM()} {
			Expect(os.WriteFile(path(name), content, 0o600)).To(Succeed())
		}
	})

	It("builds an image, and says of it what a manifest of releases takes", func() {
		built := build()
		Expect(built.err).NotTo(HaveOccurred())
		file, err := os.ReadFile(path("a.eif"))
		Expect(err).NotTo(HaveOccurred())
		image, err := eif.Decode(file)
		Expect(err).NotTo(HaveOccurred())
		Expect(attest.ParseReleases([]byte(built.stdout))).To(Equal([]attest.Release{{Version: 7, Name: "first", PCRs: image.PCRs()}}))
		Expect(mrgc("image", "describe", path("a.eif"), "--release", "7", "--name", "first").stdout).To(Equal(built.stdout))

		By("signing it, with that of another model")
		Expect(build("--model", "other", "--out", path("b.eif")).err).NotTo(HaveOccurred())
		both := mrgc("image", "describe", path("a.eif"), path("b.eif"), "--release", "7", "--name", "first")
		Expect(os.WriteFile(path("releases.json"), []byte(both.stdout), 0o600)).To(Succeed())
		Expect(mrgc("releases", "keygen", "--out", path("r")).err).NotTo(HaveOccurred())
		Expect(mrgc("releases", "sign", "--key", path("r.key"), "--releases", path("releases.json"), "--out", path("signed.json"), "--min-version", "7").err).NotTo(HaveOccurred())
		Expect(mrgc("releases", "verify", "--key", path("r.pub"), path("signed.json")).stdout).To(ContainSubstring(image.PCRs()[0].String()))
	})

	It("takes the kernel's modules", func() {
		Expect(build("--modules", path("modules")).err).To(MatchError(ContainSubstring("no module")))
		Expect(os.WriteFile(path("modules/1-nsm.ko.xz"), []byte("nsm"), 0o600)).To(Succeed())
		Expect(build("--modules", path("modules")).stdout).NotTo(Equal(build().stdout))
	})

	It("says which part is missing, and what is no image", func() {
		Expect(build("--kernel", path("none")).err).To(MatchError(ContainSubstring("--kernel: ")))
		Expect(mrgc("image", "describe", path("k.pub")).err).To(MatchError(ContainSubstring("enclave image: ")))
	})
})
