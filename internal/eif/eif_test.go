package eif_test

import (
	"bytes"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/eif"
)

func TestEIF(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "internal/eif")
}

// small is an image of which every byte can be told by hand.
func small() eif.Image {
	return eif.Image{Kernel: []byte("KERNEL"), CommandLine: "quiet", Ramdisks: [][]byte{[]byte("boot"), []byte("app"), []byte("lication")}, Metadata: []byte("{}")}
}

// smallFile is small, put together from the format's definition and not by this
// package's constants.
func smallFile() []byte {
	numbers := func(values ...any) []byte {
		var out []byte
		for _, v := range values {
			out, _ = binary.Append(out, binary.BigEndian, v)
		}
		return out
	}
	table := func(values ...uint64) (t [32]uint64) { copy(t[:], values); return t }
	before := bytes.Join([][]byte{
		[]byte(".eif"), numbers(uint16(4), uint16(0), uint64(1<<30), uint64(2), uint16(0), uint16(6)),
		numbers(table(548, 566, 583, 597, 613, 628), table(6, 5, 2, 4, 3, 8), uint32(0)),
	}, nil)
	section := func(kind uint16, content string) []byte {
		return append(numbers(kind, uint16(0), uint64(len(content))), content...)
	}
	after := bytes.Join([][]byte{
		section(1, "KERNEL"), section(2, "quiet"), section(5, "{}"), section(3, "boot"), section(3, "app"), section(3, "lication"),
	}, nil)
	sum := crc32.ChecksumIEEE(append(bytes.Clone(before), after...))
	return bytes.Join([][]byte{before, numbers(sum), after}, nil)
}

// sealed has its checksum made right again.
func sealed(file []byte) []byte {
	sum := crc32.Update(crc32.ChecksumIEEE(file[:544]), crc32.IEEETable, file[548:])
	binary.BigEndian.PutUint32(file[544:], sum)
	return file
}

var _ = Describe("An image", func() {
	It("is written byte by byte as the format says, and read again", func() {
		file, err := small().Encode()
		Expect(err).NotTo(HaveOccurred())
		Expect(hex.Dump(file)).To(Equal(hex.Dump(smallFile())))
		Expect(eif.Decode(file)).To(Equal(small()))
	})

	It("measures kernel, command line and ramdisks", func() {
		extend := func(content string) string {
			first := sha512.Sum384([]byte(content))
			second := sha512.Sum384(append(make([]byte, 48), first[:]...))
			return hex.EncodeToString(second[:])
		}
		pcrs := small().PCRs()
		Expect(pcrs).To(HaveLen(3))
		Expect(pcrs[0].String()).To(Equal(extend("KERNELquietbootapplication")))
		Expect(pcrs[1].String()).To(Equal(extend("KERNELquietboot")))
		Expect(pcrs[2].String()).To(Equal(extend("application")))

		one := small()
		one.Ramdisks = one.Ramdisks[:1]
		// SHA-384 of 48 zero bytes and SHA-384(""), by sha384sum.
		Expect(one.PCRs()[2].String()).To(HavePrefix("21b9efbc184807662e966d34f390821309eeac6802309798826296bf3e8bec7c"))
	})

	It("of another kernel, command line or ramdisk measures differently; metadata are not measured", func() {
		was := small().PCRs()[0]
		for _, change := range []func(*eif.Image){
			func(i *eif.Image) { i.Kernel = []byte("KERNEl") },
			func(i *eif.Image) { i.CommandLine = "quiet debug" },
			func(i *eif.Image) { i.Ramdisks[0] = []byte("bOot") },
			func(i *eif.Image) { i.Ramdisks[2] = []byte("licatiOn") },
		} {
			image := small()
			change(&image)
			Expect(image.PCRs()[0]).NotTo(Equal(was))
		}
		image := small()
		image.Metadata = nil
		Expect(image.PCRs()[0]).To(Equal(was))
	})

	DescribeTable("is not written", func(reason string, change func(*eif.Image)) {
		image := small()
		change(&image)
		_, err := image.Encode()
		Expect(err).To(MatchError(ContainSubstring(reason)))
	},
		Entry("without a kernel", "no kernel", func(i *eif.Image) { i.Kernel = nil }),
		Entry("without a command line", "command line of 0", func(i *eif.Image) { i.CommandLine = "" }),
		Entry("with a command line that the kernel would cut", "command line of 2048", func(i *eif.Image) { i.CommandLine = strings.Repeat("x", 2048) }),
		Entry("with a command line of two lines", "printable", func(i *eif.Image) { i.CommandLine = "a\nb" }),
		Entry("without a ramdisk", "no ramdisk", func(i *eif.Image) { i.Ramdisks = nil }),
		Entry("with an empty ramdisk", "ramdisk 1 is empty", func(i *eif.Image) { i.Ramdisks[1] = nil }),
		Entry("with too many", "33 sections", func(i *eif.Image) {
			for len(i.Ramdisks) < 30 {
				i.Ramdisks = append(i.Ramdisks, []byte("x"))
			}
		}),
	)

	// Each file's checksum is right.
	DescribeTable("is not read", func(reason string, change func([]byte) []byte) {
		_, err := eif.Decode(sealed(change(smallFile())))
		Expect(err).To(MatchError(ContainSubstring(reason)))
	},
		Entry("of another format", ".eif", set(0, 'x')),
		Entry("of an older version", "version 3", set(5, 3)),
		Entry("for another processor", "x86-64", set(7, 1)),
		Entry("with a reserved field", "unused", set(25, 1)),
		Entry("with too many sections", "33 sections", set(27, 33)),
		Entry("with a section that is not counted", "section 5 is not counted", set(27, 5)),
		Entry("with a section less than is counted", "section 6: the file ends", set(27, 7)),
		Entry("with a section elsewhere", "disagree", set(28+7, 0x23)),
		Entry("with a section of another size", "disagree", set(284+7, 7)),
		Entry("with a section's flags", "disagree", set(548+3, 1)),
		Entry("with two kernels", "begin with one kernel", set(566+1, 1)),
		Entry("without a kernel", "begin with one kernel", set(548+1, 3)),
		Entry("with an unknown section", "section 2 of type 9", set(583+1, 9)),
		Entry("with metadata twice", "section 5 of type 5", set(628+1, 5)),
		Entry("with bytes after it", "after the last", func(b []byte) []byte { return append(b, 0) }),
		Entry("without its end", "the file ends", func(b []byte) []byte { return b[:len(b)-1] }),
	)

	It("is not read with a wrong checksum, nor when it is no file at all", func() {
		file := smallFile()
		file[len(file)-1] ^= 1
		_, err := eif.Decode(file)
		Expect(err).To(MatchError(ContainSubstring("checksum")))
		_, err = eif.Decode(nil)
		Expect(err).To(MatchError(ContainSubstring("0 bytes")))
	})

	It("is read without its signature", func() {
		Expect(eif.Decode(sealed(set(583+1, 4)(smallFile())))).To(HaveField("Metadata", BeEmpty()))
	})
})

func set(at int, value byte) func([]byte) []byte {
	return func(b []byte) []byte { b[at] = value; return b }
}

var _ = Describe("A ramdisk", func() {
	It("is written byte by byte as the format says", func() {
		archive, err := eif.Ramdisk(eif.File{Path: "a/b", Mode: 0o644, Content: []byte("hello")})
		Expect(err).NotTo(HaveOccurred())
		want := "070701" + "00000001" + "000041ED" + "00000000" + "00000000" + "00000002" + "00000000" + "00000000" + "00000000" + "00000000" + "00000000" + "00000000" + "00000002" + "00000000" + "a\x00" +
			"070701" + "00000002" + "000081A4" + "00000000" + "00000000" + "00000001" + "00000000" + "00000005" + "00000000" + "00000000" + "00000000" + "00000000" + "00000004" + "00000000" + "a/b\x00\x00\x00" + "hello\x00\x00\x00" +
			"070701" + "00000000" + "00000000" + "00000000" + "00000000" + "00000001" + "00000000" + "00000000" + "00000000" + "00000000" + "00000000" + "00000000" + "0000000B" + "00000000" + "TRAILER!!!\x00\x00\x00\x00"
		Expect(strings.TrimRight(string(archive), "\x00")).To(Equal(strings.TrimRight(want, "\x00")))
		Expect(len(archive) % 512).To(BeZero())
	})

	It("is the same whatever the order of its files", func() {
		a, b := eif.File{Path: "z", Content: []byte("1")}, eif.File{Path: "etc/x", Content: []byte("2")}
		one, err := eif.Ramdisk(a, b)
		Expect(err).NotTo(HaveOccurred())
		Expect(eif.Ramdisk(b, a)).To(Equal(one))
	})

	It("is what cpio unpacks", func(ctx SpecContext) {
		if _, err := exec.LookPath("cpio"); err != nil {
			Skip("there is no cpio here")
		}
		archive, err := eif.Ramdisk(eif.File{Path: "etc/x/y", Mode: 0o600, Content: []byte("2")}, eif.File{Path: "init", Mode: 0o755, Content: bytes.Repeat([]byte("1"), 5001)})
		Expect(err).NotTo(HaveOccurred())
		dir := GinkgoT().TempDir()
		cmd := exec.CommandContext(ctx, "cpio", "--extract", "--quiet", "--no-preserve-owner")
		cmd.Dir, cmd.Stdin = dir, bytes.NewReader(archive)
		output, err := cmd.CombinedOutput()
		Expect(err).NotTo(HaveOccurred(), string(output))
		Expect(os.ReadFile(filepath.Join(dir, "init"))).To(HaveLen(5001))
		info, err := os.Stat(filepath.Join(dir, "etc/x/y"))
		Expect(err).NotTo(HaveOccurred())
		Expect(info.Mode()).To(Equal(fs.FileMode(0o600)))
		Expect(info.ModTime().Unix()).To(BeZero())
	})

	DescribeTable("is not made of", func(reason string, files ...eif.File) {
		_, err := eif.Ramdisk(files...)
		Expect(err).To(MatchError(ContainSubstring(reason)))
	},
		Entry("an absolute path", "relative", eif.File{Path: "/init"}),
		Entry("a path that leaves it", "relative", eif.File{Path: "../init"}),
		Entry("no path", "relative", eif.File{}),
		Entry("a path with a zero byte", "printable", eif.File{Path: "a\x00b"}),
		Entry("a folder given as a file", "permissions", eif.File{Path: "a", Mode: fs.ModeDir}),
		Entry("a file twice", "twice", eif.File{Path: "a"}, eif.File{Path: "a"}),
		Entry("a file in a file", "a file and a folder", eif.File{Path: "a"}, eif.File{Path: "a/b"}),
	)
})

func FuzzDecode(f *testing.F) {
	f.Add(smallFile())
	f.Add(sealed(set(583+1, 4)(smallFile())))
	f.Fuzz(func(t *testing.T, file []byte) {
		if len(file) >= 548 {
			file = sealed(bytes.Clone(file)) // or nothing would come past the checksum
		}
		image, err := eif.Decode(file)
		if err != nil {
			return
		}
		again, err := image.Encode()
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		back, err := eif.Decode(again)
		if err != nil || !bytes.Equal(back.PCRs()[0], image.PCRs()[0]) {
			t.Fatalf("written again it measures differently: %v", err)
		}
	})
}
