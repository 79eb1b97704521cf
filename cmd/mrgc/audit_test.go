package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/audit"
)

var _ = Describe("mrgc audit", func() {
	var path string
	BeforeEach(func() {
		path = filepath.Join(GinkgoT().TempDir(), "audit.log")
		log, err := audit.Open(path)
		Expect(err).NotTo(HaveOccurred())
		Expect(log.Append(time.Now(), audit.Event{Name: audit.KeyReleased, About: map[string]string{"tenant": "acme"}}, audit.Event{Name: audit.Manifest})).To(Succeed())
		Expect(log.Close()).To(Succeed())
	})

	It("verifies a chain, and finds in it a head that was noted", func() {
		got := mrgc("audit", "verify", path)
		Expect(got.err).NotTo(HaveOccurred())
		Expect(got.stdout).To(MatchRegexp(`1 key_released\n +1 release_manifest\nhead 2:[0-9a-f]{64}\n`))
		head := strings.TrimSpace(got.stdout[strings.Index(got.stdout, "head ")+len("head "):])
		Expect(mrgc("audit", "verify", path, "--head", head).err).NotTo(HaveOccurred())
		Expect(mrgc("audit", "verify", path, "--head", "3"+head[1:]).err).To(MatchError(ContainSubstring("its end is missing")))
		Expect(mrgc("audit", "verify", path, "--head", "x").err).To(MatchError(ContainSubstring("want SEQUENCE:HASH")))
	})

	It("says which record was changed", func() {
		content, err := os.ReadFile(path)
		Expect(err).NotTo(HaveOccurred())
		Expect(os.WriteFile(path, bytes.Replace(content, []byte("acme"), []byte("evil"), 1), 0o600)).To(Succeed())
		Expect(mrgc("audit", "verify", path).err).To(MatchError(ContainSubstring("record 2: does not follow the record before")))
		Expect(mrgc("audit", "show", path).err).To(HaveOccurred())
	})

	It("names the events when there is none of that name", func() {
		Expect(mrgc("audit", "show", path, "--event", "key_release").err).To(MatchError("--event key_release: did you mean key_released?"))
		Expect(mrgc("audit", "show", path, "--event", "nothing").err).To(MatchError(And(ContainSubstring("there are key_released, key_refused, "), ContainSubstring(audit.EngineHostRefused))))
	})

	It("shows records by their event", func() {
		Expect(strings.Count(mrgc("audit", "show", path).stdout, "\n")).To(Equal(2))
		Expect(mrgc("audit", "show", path, "--event", audit.KeyReleased).stdout).To(And(ContainSubstring(`"tenant":"acme"`), Not(ContainSubstring("manifest"))))
	})
})
