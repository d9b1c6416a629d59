// Renders Go templates as Ollama does: reads [{"template", "talks": [[[role, content]]]}], writes [[text]].
package main

import (
	"bytes"
	"encoding/json"
	"os"
	"text/template"
)

type message struct{ Role, Content string }

func main() {
	var asked []struct {
		Template string
		Talks    [][][2]string
	}
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		panic(err)
	}
	said := [][]string{}
	for _, each := range asked {
		parsed := template.Must(template.New("").Option("missingkey=zero").Parse(each.Template))
		texts := []string{}
		for _, talk := range each.Talks {
			messages := []*message{}
			for _, pair := range talk {
				messages = append(messages, &message{pair[0], pair[1]})
			}
			var text bytes.Buffer
			if err := parsed.Execute(&text, map[string]any{"Messages": messages, "Response": ""}); err != nil {
				panic(err)
			}
			texts = append(texts, text.String())
		}
		said = append(said, texts)
	}
	if err := json.NewEncoder(os.Stdout).Encode(said); err != nil {
		panic(err)
	}
}
