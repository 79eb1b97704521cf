package cloudwatchlogs_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gbytes"

	"github.com/mrgc/mrgc/internal/audit"
	"github.com/mrgc/mrgc/internal/audit/cloudwatchlogs"
)

func TestCloudWatchLogs(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "internal/audit/cloudwatchlogs")
}

var _ = Describe("An audit log's copy", func() {
	var (
		there *logs
		path  string
	)
	BeforeEach(func() {
		there = serveLogs()
		path = filepath.Join(GinkgoT().TempDir(), "audit.log")
	})
	record := func(n int) {
		GinkgoHelper()
		log, err := audit.Open(path)
		Expect(err).NotTo(HaveOccurred())
		for range n {
			Expect(log.Append(time.Now(), audit.Event{Name: audit.KeyReleased, About: map[string]string{"request": "0f"}})).To(Succeed())
		}
		Expect(log.Close()).To(Succeed())
	}
	open := func(ctx context.Context) *cloudwatchlogs.Shipper {
		GinkgoHelper()
		s, err := cloudwatchlogs.Open(ctx, cloudwatchlogs.Config{Settings: there.settings(), Group: "audit", Writer: "use1-0", Path: path})
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(s.Close)
		return s
	}
	content := func() string {
		GinkgoHelper()
		b, err := os.ReadFile(path)
		Expect(err).NotTo(HaveOccurred())
		return string(b)
	}
	stream := func() string {
		GinkgoHelper()
		names := there.names()
		Expect(names).To(HaveLen(1))
		return names[0]
	}
	copied := func() string { return strings.Join(there.lines(stream()), "\n") + "\n" }

	It("has the file's lines, and only what is new is shipped", func(ctx SpecContext) {
		s := open(ctx)
		record(0)
		Expect(s.Ship(ctx)).To(Succeed())
		Expect(there.names()).To(BeEmpty(), "nothing was recorded")
		record(5)
		Expect(s.Ship(ctx)).To(Succeed())
		Expect(stream()).To(MatchRegexp(`^use1-0/[0-9a-f]{16}$`))
		Expect(copied()).To(Equal(content()))
		Expect(s.Ship(ctx)).To(Succeed())
		record(2)
		Expect(s.Ship(ctx)).To(Succeed())
		Expect(copied()).To(Equal(content()))
		Expect(there.count("PutLogEvents")).To(Equal(2))
		Expect(there.count("GetLogEvents")).To(BeNumerically("<=", 2), "it asks when it begins")
	})

	It("goes on where it was when its process starts anew", func(ctx SpecContext) {
		record(8)
		Expect(open(ctx).Ship(ctx)).To(Succeed())
		record(4)
		Expect(open(ctx).Ship(ctx)).To(Succeed())
		Expect(copied()).To(Equal(content()))
	})

	It("is as many calls as CloudWatch wants", func(ctx SpecContext) {
		log, err := audit.Open(path)
		Expect(err).NotTo(HaveOccurred())
		defer log.Close()
		long := map[string]string{}
		for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
			long[name] = strings.Repeat("x", 1000)
		}
		events := make([]audit.Event, 300) // 2.4 MB
		for i := range events {
			events[i] = audit.Event{Name: audit.KeyRefused, About: long}
		}
		Expect(log.Append(time.Now(), events...)).To(Succeed())
		Expect(open(ctx).Ship(ctx)).To(Succeed())
		Expect(there.count("PutLogEvents")).To(Equal(3))
		Expect(copied()).To(Equal(content()))
	})

	It("leaves half a line for when it is whole", func(ctx SpecContext) {
		record(3)
		whole := content()
		Expect(os.WriteFile(path, []byte(whole[:len(whole)-10]), 0o600)).To(Succeed())
		s := open(ctx)
		Expect(s.Ship(ctx)).To(Succeed())
		Expect(there.lines(stream())).To(HaveLen(2))
		Expect(os.WriteFile(path, []byte(whole), 0o600)).To(Succeed())
		Expect(s.Ship(ctx)).To(Succeed())
		Expect(copied()).To(Equal(whole))
	})

	DescribeTable("finds out that the file was tampered with after it was copied", func(ctx SpecContext, sameProcess bool, tamper func(lines []string) []string) {
		record(6)
		s := open(ctx)
		Expect(s.Ship(ctx)).To(Succeed())
		before := copied()
		lines := tamper(strings.SplitAfter(strings.TrimSuffix(content(), "\n"), "\n"))
		Expect(os.WriteFile(path, []byte(strings.Join(lines, "")), 0o600)).To(Succeed())
		if !sameProcess {
			s = open(ctx)
		}
		Expect(s.Ship(ctx)).NotTo(Succeed())
		Expect(copied()).To(Equal(before), "nothing of it is shipped")
	},
		Entry("its end was cut off", false, func(lines []string) []string { return lines[:4] }),
		Entry("its end was cut off while it is shipped", true, func(lines []string) []string { return lines[:4] }),
		Entry("a record was changed", false, func(lines []string) []string {
			lines[5] = strings.Replace(lines[5], `"0f"`, `"0e"`, 1) + "\n"
			return lines
		}),
		Entry("one in the midst was", false, func(lines []string) []string {
			lines[2] = strings.Replace(lines[2], `"0f"`, `"0e"`, 1)
			return lines
		}),
		Entry("one is missing", false, func(lines []string) []string { return append(lines[:2], lines[3:]...) }),
	)

	It("is another stream when the file was written anew", func(ctx SpecContext) {
		record(2)
		Expect(open(ctx).Ship(ctx)).To(Succeed())
		Expect(os.Remove(path)).To(Succeed())
		record(2)
		Expect(open(ctx).Ship(ctx)).To(Succeed())
		Expect(there.names()).To(HaveLen(2))
	})

	It("is fetched as a chain that verifies, though answers were lost and records are there twice", func(ctx SpecContext) {
		record(4)
		there.lose = 3
		s := open(ctx)
		Expect(s.Ship(ctx)).NotTo(Succeed())
		record(1)
		Expect(s.Ship(ctx)).To(Succeed())
		Expect(len(there.lines(stream()))).To(BeNumerically(">", 5), "the SDK has tried again what had taken effect")
		var out bytes.Buffer
		Expect(cloudwatchlogs.Fetch(ctx, there.settings(), "audit", stream(), &out)).To(Succeed())
		Expect(out.String()).To(Equal(content()))
		_, err := audit.Verify(&out)
		Expect(err).NotTo(HaveOccurred())
	})

	It("is not fetched when two chains are in it", func(ctx SpecContext) {
		record(2)
		Expect(open(ctx).Ship(ctx)).To(Succeed())
		there.mu.Lock()
		for name, events := range there.streams {
			forged := events[1]
			forged.Message = strings.Replace(forged.Message, `"0f"`, `"0e"`, 1)
			there.streams[name] = append(events, forged)
		}
		there.mu.Unlock()
		Expect(cloudwatchlogs.Fetch(ctx, there.settings(), "audit", stream(), GinkgoWriter)).To(MatchError(ContainSubstring("two records 2")))
	})

	It("is made while its process runs, and once more as it ends", func(ctx SpecContext) {
		said := gbytes.NewBuffer()
		record(1)
		GinkgoT().Setenv("AWS_ACCESS_KEY_ID", "local")
		GinkgoT().Setenv("AWS_SECRET_ACCESS_KEY", "local")
		stop, err := cloudwatchlogs.Start(ctx, "audit?region=us-west-2&endpoint="+there.url, "use1-0", path, slog.New(slog.NewTextHandler(said, nil)))
		Expect(err).NotTo(HaveOccurred())
		Eventually(there.names).Should(HaveLen(1))
		Eventually(func() []string { return there.lines(stream()) }).Should(HaveLen(1))
		record(1)
		stop()
		Expect(copied()).To(Equal(content()))
		Expect(said.Contents()).To(BeEmpty())
	})

	It("says what is missing", func(ctx SpecContext) {
		record(1)
		_, err := cloudwatchlogs.Start(ctx, "audit?colour=red", "a", path, slog.Default())
		Expect(err).To(MatchError(ContainSubstring(`unknown setting "colour"`)))
		_, err = cloudwatchlogs.Open(ctx, cloudwatchlogs.Config{Settings: there.settings(), Group: "no group", Writer: "a", Path: path})
		Expect(err).To(MatchError(ContainSubstring(`log group "no group"`)))
		_, err = cloudwatchlogs.Open(ctx, cloudwatchlogs.Config{Settings: there.settings(), Group: "audit", Writer: "a:b", Path: path})
		Expect(err).To(MatchError(ContainSubstring(`writer "a:b"`)))
		s, err := cloudwatchlogs.Open(ctx, cloudwatchlogs.Config{Settings: there.settings(), Group: "elsewhere", Writer: "a", Path: path})
		Expect(err).NotTo(HaveOccurred())
		defer s.Close()
		Expect(s.Ship(ctx)).To(MatchError(And(ContainSubstring("elsewhere"), ContainSubstring("create-log-group"))))
	})
})
