package config_test

import (
	"os"
	"reflect"
	"regexp"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"go.yaml.in/yaml/v3"

	"github.com/mrgc/mrgc/internal/config"
)

const examplePath = "../../mrgc.example.yaml"

// exampleField is a field as the example shows it where it first does.
type exampleField struct {
	value   string
	comment string // on one line
}

var _ = Describe("mrgc.example.yaml", func() {
	It("is valid", func() {
		_, err := config.Load(examplePath)
		Expect(err).NotTo(HaveOccurred())
	})

	It("shows and explains every field", func() {
		shown := exampleFields()
		var want []string
		addFields(&want, "", reflect.TypeFor[config.Config]())
		for _, field := range want {
			Expect(shown).To(HaveKey(field))
			Expect(shown[field].comment).NotTo(BeEmpty(), "%s is not explained", field)
		}
		Expect(shown).To(HaveLen(len(want)))
	})

	It("gives every field that has a fixed default that default, and the true one", func() {
		defaults, err := config.Parse("mrgc.yaml", []byte(minimal))
		Expect(err).NotTo(HaveOccurred())
		example, err := config.Load(examplePath)
		Expect(err).NotTo(HaveOccurred())
		Expect(example.Limits).To(Equal(defaults.Limits))
		Expect(example.Picker).To(Equal(defaults.Picker))
		Expect(example.Fleet).To(Equal(defaults.Fleet))
		Expect(example.Scaling).To(Equal(defaults.Scaling))
		Expect(example.Listeners).To(Equal(defaults.Listeners))

		documented := regexp.MustCompile(`Default ([0-9a-z]+)`)
		for field, shown := range exampleFields() {
			switch section, name, _ := strings.Cut(field, "."); section {
			case "limits", "picker", "fleet", "scaling", "listeners":
				if name != "" {
					Expect(documented.FindStringSubmatch(shown.comment)).To(HaveExactElements(Not(BeEmpty()), shown.value), field)
				}
			}
		}
	})
})

// addFields lists the fields of a type, "regions", "regions.name" and so on.
func addFields(fields *[]string, prefix string, of reflect.Type) {
	for i := range of.NumField() {
		name := prefix + of.Field(i).Tag.Get("yaml")
		*fields = append(*fields, name)
		inner := of.Field(i).Type
		if inner.Kind() == reflect.Slice {
			inner = inner.Elem()
		}
		if inner.Kind() == reflect.Struct {
			addFields(fields, name+".", inner)
		}
	}
}

func exampleFields() map[string]exampleField {
	GinkgoHelper()
	text, err := os.ReadFile(examplePath)
	Expect(err).NotTo(HaveOccurred())
	var document yaml.Node
	Expect(yaml.Unmarshal(text, &document)).To(Succeed())
	fields := make(map[string]exampleField)
	collectFields(fields, "", document.Content[0])
	return fields
}

func collectFields(fields map[string]exampleField, prefix string, node *yaml.Node) {
	switch node.Kind {
	case yaml.SequenceNode:
		for _, item := range node.Content {
			// The library hands an item the comment before its first field.
			if item.Kind == yaml.MappingNode && item.Content[0].HeadComment == "" {
				item.Content[0].HeadComment = item.HeadComment
			}
			collectFields(fields, prefix, item)
		}
	case yaml.MappingNode:
		for i := 0; i < len(node.Content); i += 2 {
			key, value := node.Content[i], node.Content[i+1]
			name := prefix + key.Value
			if _, again := fields[name]; !again {
				comment := strings.Join(strings.Fields(strings.ReplaceAll(key.HeadComment, "#", "")), " ")
				fields[name] = exampleField{value: value.Value, comment: comment}
			}
			collectFields(fields, name+".", value)
		}
	}
}
