"""For ms-swift and the small checkpoint here only: swift's template has the token numbers of Qwen's own written in."""

from swift.template.templates.qwen import Qwen2VLTemplate

for template in (Qwen2VLTemplate, *Qwen2VLTemplate.__subclasses__()):
    template.image_token_id, template.video_token_id = 5, 6
