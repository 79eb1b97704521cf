// Package eif reads and writes Nitro Enclaves' image format, version 4, and
// says what an image measures.
//
//	ramdisk, err := eif.Ramdisk(eif.File{Path: "init", Mode: 0o755, Content: program})
//	image := eif.Image{Kernel: kernel, CommandLine: "…", Ramdisks: [][]byte{ramdisk}}
//	file, err := image.Encode()
//	registers := image.PCRs() // what a security module will say of it
//
// The format is that of AWS's crate aws-nitro-enclaves-image-format
// (src/defs/mod.rs): a header of 548 bytes, all numbers big-endian, then
// sections, each behind a header of 12 bytes.
//
// The package is pure, and the same image encodes to the same bytes: nothing in
// it is a time, a path or a random number. It signs no images (PCR8).
package eif

import (
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"

	"github.com/mrgc/mrgc/internal/attest"
)

const (
	magic       = ".eif"
	version     = 4
	maxSections = 32

	headerBytes        = 548
	sectionHeaderBytes = 12
	crcOffset          = headerBytes - 4 // of the CRC-32 of everything but itself

	// MaxBytes bounds an image that is read: more than an instance of any type
	// gives an enclave that has an application this small.
	MaxBytes = 1 << 30
	// MaxCommandLineBytes is the x86 kernel's COMMAND_LINE_SIZE, with its end.
	MaxCommandLineBytes = 2047
)

// sectionType says what a section is.
type sectionType uint16

const (
	sectionKernel    sectionType = 1
	sectionCmdline   sectionType = 2
	sectionRamdisk   sectionType = 3
	sectionSignature sectionType = 4
	sectionMetadata  sectionType = 5
)

// Defaults that a header carries, for a launcher that is told nothing else.
const (
	defaultMemoryBytes = 1 << 30
	defaultCPUs        = 2
)

// Image is what an enclave boots.
type Image struct {
	Kernel      []byte // bzImage of x86-64
	CommandLine string
	Ramdisks    [][]byte // at least one; the first boots, the others are the application
	Metadata    []byte   // JSON, not measured; may be empty
}

// header is the fixed part of an image, as it lies in the file.
type header struct {
	Magic              [4]byte
	Version            uint16
	Flags              uint16 // bit 0: aarch64
	DefaultMemoryBytes uint64
	DefaultCPUs        uint64
	Reserved           uint16
	Sections           uint16
	Offsets            [maxSections]uint64 // of sections' headers
	Sizes              [maxSections]uint64 // without sections' headers
	Unused             uint32
	CRC                uint32
}

type sectionHeader struct {
	Type  sectionType
	Flags uint16
	Bytes uint64
}

type section struct {
	kind    sectionType
	content []byte
}

func (i Image) sections() []section {
	all := []section{{sectionKernel, i.Kernel}, {sectionCmdline, []byte(i.CommandLine)}}
	if len(i.Metadata) > 0 {
		all = append(all, section{sectionMetadata, i.Metadata})
	}
	for _, ramdisk := range i.Ramdisks {
		all = append(all, section{sectionRamdisk, ramdisk})
	}
	return all
}

func (i Image) check() error {
	switch {
	case len(i.Kernel) == 0:
		return errors.New("no kernel")
	case i.CommandLine == "" || len(i.CommandLine) > MaxCommandLineBytes:
		return fmt.Errorf("command line of %d bytes, want 1 to %d", len(i.CommandLine), MaxCommandLineBytes)
	case strings.ContainsFunc(i.CommandLine, func(r rune) bool { return r < ' ' || r > '~' }):
		return errors.New("command line: want printable ASCII")
	case len(i.Ramdisks) == 0:
		return errors.New("no ramdisk")
	case len(i.sections()) > maxSections:
		return fmt.Errorf("%d sections, at most %d", len(i.sections()), maxSections)
	}
	for n, ramdisk := range i.Ramdisks {
		if len(ramdisk) == 0 {
			return fmt.Errorf("ramdisk %d is empty", n)
		}
	}
	return nil
}

// Encode is the image as a file.
func (i Image) Encode() ([]byte, error) {
	if err := i.check(); err != nil {
		return nil, fmt.Errorf("enclave image: %w", err)
	}
	sections := i.sections()
	h := header{
		Magic: [4]byte([]byte(magic)), Version: version, Sections: uint16(len(sections)),
		DefaultMemoryBytes: defaultMemoryBytes, DefaultCPUs: defaultCPUs,
	}
	offset := uint64(headerBytes)
	for n, s := range sections {
		h.Offsets[n], h.Sizes[n] = offset, uint64(len(s.content))
		offset += sectionHeaderBytes + uint64(len(s.content))
	}
	if offset > MaxBytes {
		return nil, fmt.Errorf("enclave image: %d bytes, at most %d", offset, MaxBytes)
	}
	file, err := binary.Append(make([]byte, 0, offset), binary.BigEndian, h)
	if err != nil {
		return nil, fmt.Errorf("enclave image: %w", err)
	}
	for _, s := range sections {
		if file, err = binary.Append(file, binary.BigEndian, sectionHeader{Type: s.kind, Bytes: uint64(len(s.content))}); err != nil {
			return nil, fmt.Errorf("enclave image: %w", err)
		}
		file = append(file, s.content...)
	}
	binary.BigEndian.PutUint32(file[crcOffset:], checksum(file))
	return file, nil
}

// checksum is the CRC-32 (IEEE 802.3) of all of a file but the checksum itself.
func checksum(file []byte) uint32 {
	return crc32.Update(crc32.ChecksumIEEE(file[:crcOffset]), crc32.IEEETable, file[headerBytes:])
}

// PCRs are the registers that a security module measures the image into (AWS
// Nitro Enclaves user guide, "Where to get an enclave's measurements").
func (i Image) PCRs() attest.PCRs {
	boot := [][]byte{i.Kernel, []byte(i.CommandLine)}
	var application [][]byte
	if len(i.Ramdisks) > 0 {
		boot, application = append(boot, i.Ramdisks[0]), i.Ramdisks[1:]
	}
	return attest.PCRs{
		0: measure(slices.Concat(boot, application)),
		1: measure(boot),
		2: measure(application),
	}
}

func measure(parts [][]byte) attest.HexBytes {
	h := sha512.New384()
	for _, part := range parts {
		h.Write(part)
	}
	return attest.ExtendedPCR(h.Sum(nil))
}

// Decode reads an image strictly: whatever [Image.Encode] would not have written
// is refused, but for the header's defaults, the place of the metadata, and a
// signature, which is left out of the result. The result shares file's memory.
func Decode(file []byte) (Image, error) {
	image, err := decode(file)
	if err != nil {
		return Image{}, fmt.Errorf("enclave image: %w", err)
	}
	return image, nil
}

func decode(file []byte) (Image, error) {
	h, err := decodeHeader(file)
	if err != nil {
		return Image{}, err
	}
	sections, err := decodeSections(file, h)
	if err != nil {
		return Image{}, err
	}
	var image Image
	var signed bool
	for n, s := range sections {
		// What is measured in order has to lie in order: no two files that are read
		// differently measure the same.
		switch {
		case (n == 0) != (s.kind == sectionKernel), (n == 1) != (s.kind == sectionCmdline):
			return Image{}, errors.New("the sections do not begin with one kernel and one command line")
		case s.kind == sectionKernel:
			image.Kernel = s.content
		case s.kind == sectionCmdline:
			image.CommandLine = string(s.content)
		case s.kind == sectionRamdisk:
			image.Ramdisks = append(image.Ramdisks, s.content)
		case s.kind == sectionMetadata && len(image.Metadata) == 0 && len(s.content) > 0:
			image.Metadata = s.content
		case s.kind == sectionSignature && !signed:
			signed = true
		default:
			return Image{}, fmt.Errorf("section %d of type %d is unknown, empty, or there twice", n, s.kind)
		}
	}
	return image, image.check()
}

func decodeHeader(file []byte) (header, error) {
	var h header
	if len(file) < headerBytes || len(file) > MaxBytes {
		return h, fmt.Errorf("%d bytes, want %d to %d", len(file), headerBytes, MaxBytes)
	}
	if _, err := binary.Decode(file, binary.BigEndian, &h); err != nil {
		return h, err
	}
	switch {
	case string(h.Magic[:]) != magic:
		return h, errors.New("it does not begin with .eif")
	case h.Version != version:
		return h, fmt.Errorf("version %d, want %d", h.Version, version)
	case h.Flags != 0:
		return h, errors.New("not for x86-64")
	case h.Reserved != 0 || h.Unused != 0:
		return h, errors.New("an unused field is not zero")
	case h.Sections > maxSections:
		return h, fmt.Errorf("%d sections, at most %d", h.Sections, maxSections)
	case h.CRC != checksum(file):
		return h, errors.New("the checksum is wrong")
	}
	return h, nil
}

// decodeSections holds the header's table against the sections' own headers:
// they lie one behind the other, and fill the file.
func decodeSections(file []byte, h header) ([]section, error) {
	var sections []section
	rest := file[headerBytes:]
	for n := range h.Offsets {
		if n >= int(h.Sections) {
			if h.Offsets[n] != 0 || h.Sizes[n] != 0 {
				return nil, fmt.Errorf("section %d is not counted", n)
			}
			continue
		}
		var s sectionHeader
		if _, err := binary.Decode(rest, binary.BigEndian, &s); err != nil {
			return nil, fmt.Errorf("section %d: the file ends", n)
		}
		if h.Offsets[n] != uint64(len(file)-len(rest)) || h.Sizes[n] != s.Bytes || s.Flags != 0 {
			return nil, fmt.Errorf("section %d: header and section disagree", n)
		}
		rest = rest[sectionHeaderBytes:]
		if s.Bytes > uint64(len(rest)) {
			return nil, fmt.Errorf("section %d: the file ends", n)
		}
		sections = append(sections, section{s.Type, rest[:s.Bytes:s.Bytes]})
		rest = rest[s.Bytes:]
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("%d bytes after the last section", len(rest))
	}
	return sections, nil
}
