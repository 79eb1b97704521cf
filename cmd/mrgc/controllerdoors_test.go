package main

import (
	"path/filepath"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

var _ = DescribeTable("mrgc controller refuses", func(why string, args ...string) {
	dir := GinkgoT().TempDir()
	got := mrgc(append([]string{
		"controller", "--config", example, "--region", "use1", "--state", "sqlite:" + filepath.Join(dir, "state.db"),
		"--store", "sqlite:" + filepath.Join(dir, "fleet.db"), "--admin-listen", "127.0.0.1:0",
	}, args...)...)
	Expect(got.err).To(MatchError(ContainSubstring(why)))
},
	Entry("an accelerator without doors", "of use with --door alone", "--accelerator", "arn:x"),
	Entry("an identity without anybody to show it to", "--door or --ec2", "--identity", "dir:x"),
	Entry("a launch template without zones", "no zones", "--ec2", "mrgc-gpu"),
	Entry("a launch template with a zone that is none", `zone "use1"`, "--ec2", "mrgc-gpu?zones=use1"),
	Entry("a launch template with what it does not know", `unknown setting "colour"`, "--ec2", "mrgc-gpu?zones=us-east-1a&colour=red"),
	Entry("doors without a name to knock by", "needs --store and --identity", "--door", "use1=h:1"),
	Entry("a door without an address", "want REGION=host:port", "--identity", "dir:x", "--door", "use1"),
	Entry("a door of nowhere", "no such region", "--identity", "dir:x", "--door", "euw1=h:1"),
	Entry("two doors of a region", "has one already", "--identity", "dir:x", "--door", "use1=h:1", "--door", "use1=h:2"),
	Entry("a region without a door", "none for region usw2", "--identity", "dir:x", "--door", "use1=h:1", "--door", "use2=h:1"),
	Entry("an identity that is not there", "/nowhere/ca.crt: no such file", "--identity", "dir:/nowhere", "--door", "use1=h:1", "--door", "use2=h:1", "--door", "usw2=h:1"),
)
